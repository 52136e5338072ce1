// Noise as PyTorch draws it, the tokens of a text, and the loop of DPM-Solver++ (2M) or DDIM over the exported table.

/** PyTorch's generator on the CPU: MT19937, Matsumoto and Nishimura 1998. */
class Twister {
  constructor(seed) {
    this.state = new Uint32Array(624)
    this.state[0] = seed
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1]
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i
    }
    this.place = 624
  }

  /** 32 random bits. */
  next() {
    if (this.place === 624) this.turn()
    let y = this.state[this.place++]
    y ^= y >>> 11
    y ^= (y << 7) & 0x9d2c5680
    y ^= (y << 15) & 0xefc60000
    return (y ^ (y >>> 18)) >>> 0
  }

  turn() {
    const s = this.state
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff)
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0)
    }
    this.place = 0
  }

  /** One of 2²⁴ numbers in [0, 1). */
  uniform() {
    return (this.next() & 0xffffff) / 0x1000000
  }
}

/** What `torch.randn(size, generator=torch.Generator().manual_seed(seed))` gives, float32, for sizes from 16 on. */
export function normal(seed, size) {
  const random = new Twister(seed)
  const values = new Float32Array(size)
  for (let i = 0; i < size; i++) values[i] = random.uniform()
  for (let i = 0; i + 16 <= size; i += 16) pairs(values, i)
  if (size % 16) {
    for (let i = size - 16; i < size; i++) values[i] = random.uniform()
    pairs(values, size - 16)
  }
  return values
}

/** Box and Muller's transform of sixteen uniform numbers: each of the first eight with one of the last. */
function pairs(values, start) {
  for (let i = start; i < start + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i]))
    const angle = 2 * Math.PI * values[i + 8]
    values[i] = radius * Math.cos(angle)
    values[i + 8] = radius * Math.sin(angle)
  }
}

const LONGEST_WORD = 100 // characters; BERT knows no longer one

/** The tokens of a text, as BERT's WordPiece finds them: `length` numbers and a mask of those that are no padding. */
export function tokenise(text, { vocab, length }) {
  const plain = text.normalize('NFD').replace(/\p{Mn}/gu, '').toLowerCase()
  const apart = plain.replace(/[\p{Ideographic}]/gu, ' $& ') // each a word, as BERT has it
  const words = apart.match(/[\p{P}$+<=>^`|~]|[^\s\p{P}$+<=>^`|~]+/gu) ?? []
  const found = [vocab['[CLS]'], ...words.flatMap(word => pieces(word, vocab)), vocab['[SEP]']]
  if (found.length > length) throw new Error(`The text has ${found.length} tokens, expected at most ${length}.`)
  const ids = new BigInt64Array(length).fill(BigInt(vocab['[PAD]']))
  const mask = new BigInt64Array(length)
  found.forEach((id, i) => {
    ids[i] = BigInt(id)
    mask[i] = 1n
  })
  return { ids, mask }
}

/** The longest known pieces of a word from its start on; one unknown token where there are none. */
function pieces(word, vocab) {
  if (word.length > LONGEST_WORD) return [vocab['[UNK]']]
  const found = []
  for (let start = 0, end; start < word.length; start = end) {
    const before = start ? '##' : ''
    for (end = word.length; end > start && !Object.hasOwn(vocab, before + word.slice(start, end)); end--);
    if (end === start) return [vocab['[UNK]']]
    found.push(vocab[before + word.slice(start, end)])
  }
  return found
}

/**
 * What the network sees: `[z, given frames (0 elsewhere), mask]` as `[2·C + 1, F, H, W]`, or z where it reads no frames.
 * `z` and `given` are `[C, F, H, W]`; `places` are the given frames' places among the F.
 */
export function networkInput(z, given, places, { channels, reads, frames, pixels }) {
  if (!reads) return z
  const clip = frames * pixels
  const input = new Float32Array((2 * channels + 1) * clip)
  input.set(z)
  for (const place of places) {
    for (let c = 0; c < channels; c++) {
      const at = c * clip + place * pixels
      const frame = given.subarray(at, at + pixels)
      input.set(frame, at)
      input.set(frame, channels * clip + at)
    }
    input.fill(1, 2 * channels * clip + place * pixels, 2 * channels * clip + (place + 1) * pixels)
  }
  return input
}

/** Whether the network computes here what it computed where it was exported, within `close`. */
export function agrees(output, { stride, values }, close) {
  return values.every((value, i) => Math.abs(output[(i * stride) % output.length] - value) < close)
}

/**
 * From noise to a clip.
 *
 * `predict(z, t)` gives the network's output; `row` is the part of the table for a number of calls; `rule` says what
 * the network predicts, whether clips are held in [-1, 1], and the solver's order: 2, or 1 for DDIM; `report(done,
 * total)` is told each step.
 */
export async function solve(predict, row, rule, noise, report = () => {}) {
  const { alpha, sigma, logsnr_half: half, timesteps } = row
  let z = Float32Array.from(noise)
  let before = null
  for (let i = 0; i < timesteps.length; i++) {
    const clip = original(await predict(z, timesteps[i]), z, alpha[i], sigma[i], rule)
    const last = half[i + 1] === null
    const keep = sigma[i + 1] / sigma[i]
    const add = -alpha[i + 1] * (last ? -1 : Math.expm1(half[i] - half[i + 1]))
    const ahead = before && !last && rule.solver_order === 2 ? (half[i + 1] - half[i]) / (2 * (half[i] - half[i - 1])) : 0
    const next = new Float32Array(z.length)
    for (let j = 0; j < z.length; j++) {
      const guess = ahead ? clip[j] + ahead * (clip[j] - before[j]) : clip[j]
      next[j] = keep * z[j] + add * guess
    }
    z = next
    before = clip
    report(i + 1, timesteps.length)
  }
  return z
}

/** The clip that the network's output stands for. */
function original(output, z, alpha, sigma, { prediction_type: type, clip_sample: held }) {
  const clip = new Float32Array(z.length)
  for (let j = 0; j < z.length; j++) {
    const x =
      type === 'sample'
        ? output[j]
        : type === 'epsilon'
          ? (z[j] - sigma * output[j]) / alpha
          : alpha * z[j] - sigma * output[j]
    clip[j] = held ? Math.min(1, Math.max(-1, x)) : x
  }
  return clip
}
