// A GIF89a of grey or colour frames, with Lempel-Ziv-Welch as the format has it.

/**
 * The bytes of a GIF that plays for ever.
 *
 * `frames` are `{ data, width, height }` as a canvas gives them (RGBA), all of one size; `delay` is in hundredths of a
 * second; `scale` repeats pixels. Grey frames keep their 256 levels; coloured ones get a cube of 6·7·6 colours.
 */
export function gif(frames, delay, scale = 1) {
  const { width, height } = frames[0]
  const grey = frames.every(({ data }) => isGrey(data))
  const out = [...ascii('GIF89a'), ...short(width * scale), ...short(height * scale), 0xf7, 0, 0]
  for (let i = 0; i < 256; i++) out.push(...(grey ? [i, i, i] : cube(i)))
  out.push(0x21, 0xff, 11, ...ascii('NETSCAPE2.0'), 3, 1, 0, 0, 0)
  for (const { data } of frames) {
    out.push(0x21, 0xf9, 4, 0, ...short(delay), 0, 0)
    out.push(0x2c, 0, 0, 0, 0, ...short(width * scale), ...short(height * scale), 0, 8)
    const pixels = indices(data, width, height, scale, grey)
    const packed = compress(pixels)
    for (let i = 0; i < packed.length; i += 255) {
      const block = packed.slice(i, i + 255)
      out.push(block.length, ...block)
    }
    out.push(0)
  }
  out.push(0x3b)
  return Uint8Array.from(out)
}

const ascii = text => [...text].map(letter => letter.charCodeAt(0))
const short = value => [value & 255, value >> 8]

function isGrey(data) {
  for (let i = 0; i < data.length; i += 4) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false
  return true
}

/** Colour i of the cube; those beyond it are black. */
function cube(i) {
  if (i >= 252) return [0, 0, 0]
  return [Math.floor(i / 42) * 51, Math.round((Math.floor(i / 6) % 7) * 42.5), (i % 6) * 51]
}

function indices(data, width, height, scale, grey) {
  const out = new Uint8Array(width * height * scale * scale)
  for (let y = 0, at = 0; y < height * scale; y++) {
    for (let x = 0; x < width * scale; x++, at++) {
      const i = 4 * (Math.floor(y / scale) * width + Math.floor(x / scale))
      out[at] = grey
        ? data[i]
        : Math.round(data[i] / 51) * 42 + Math.round(data[i + 1] / 42.5) * 6 + Math.round(data[i + 2] / 51)
    }
  }
  return out
}

/** LZW of 8-bit numbers, codes of 9 to 12 bits, the lowest bits first. */
function compress(pixels) {
  const CLEAR = 256
  const END = 257
  const bytes = []
  let bits = 0
  let count = 0
  let size, codes
  const put = code => {
    bits |= code << count
    count += size
    for (; count >= 8; count -= 8, bits >>>= 8) bytes.push(bits & 255)
  }
  const restart = () => {
    codes = new Map()
    size = 9
  }
  restart()
  put(CLEAR)
  let prefix = pixels[0]
  for (let i = 1; i < pixels.length; i++) {
    const key = prefix * 256 + pixels[i]
    const code = codes.get(key)
    if (code !== undefined) {
      prefix = code
      continue
    }
    put(prefix)
    const next = 258 + codes.size
    if (next < 4096) {
      if (next === 1 << size) size++
      codes.set(key, next)
    } else {
      put(CLEAR)
      restart()
    }
    prefix = pixels[i]
  }
  put(prefix)
  if (258 + codes.size === 1 << size && size < 12) size++ // a reader has counted one code more by now
  put(END)
  if (count) bytes.push(bits & 255)
  return bytes
}
