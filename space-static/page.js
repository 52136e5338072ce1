// The page: what is asked for, what was made, and a link to it. The model itself is in worker.js.

import { gif } from './gif.js'

const FPS = 8
const GIVEN_COLOUR = [255, 140, 0]
const BORDER = 2 // pixels of a frame in the GIF
const MOST_FRAMES = 300 // of an upload
const MOST_BYTES = 8 * 2 ** 20
const ACTIONS = { predict: 'Continue the clip', generate: 'Create a clip', interpolate: 'Fill the gap' }
const NO_LINK = 'your own frames are in no link: keep the GIF'

const $ = id => document.getElementById(id)
const page = { kind: 'predict', model: null, clips: [], own: { upload: [], draw: [] }, shown: null, playing: true, busy: false }

// ------------------------------------------------------------------------------------------------------- the start
start().catch(fail)

async function start() {
  page.model = await (await fetch('model/model.json')).json()
  const { model } = page
  const [height, width] = model.size
  page.shape = { height, width, pixels: height * width, channels: model.out_channels }
  if (model.clips) page.clips = await readRows('model/clips.png', model.clips, model.clip_frames)
  const example = model.example && (await readRows('model/example.png', 1, model.example.frames))
  $('clip').max = Math.max(model.clips - 1, 0)
  $('frames').max = model.num_frames
  $('given').max = model.num_frames - 1
  $('trained').textContent = `the model was trained on ${model.num_frames}`
  $('steps').replaceChildren(...Object.keys(model.steps).map(steps => new Option(steps, steps)))
  set({ steps: model.usual.calls, frames: model.usual.frames, given: model.usual.given, follow: model.follow, clip: 0 })
  const megabytes = Math.round((Object.values(model.bytes).reduce((a, b) => a + b) + 14e6) / 1e6)
  $('note').textContent = `The first time, your browser fetches the model: about ${megabytes} MB.`
  for (const item of document.querySelectorAll('[data-needs="text"]')) item.dataset.missing = model.text ? '' : 'yes'
  const tells = model.in_channels > model.out_channels
  for (const tab of tabs()) tab.hidden = !tells && tab.dataset.kind !== 'generate'
  if (!model.clips) {
    document.querySelector('[value="test"]').closest('label').hidden = true
    document.querySelector('[value="draw"]').checked = true
  }
  choose(tells ? 'predict' : 'generate')
  $('make').disabled = false
  const opened = read(location.search)
  if (opened) {
    set(opened)
    say('The settings of the link are set: press the button to make the clip.')
  } else if (example) {
    set(model.example)
    show(model.example, example[0])
  }
  setInterval(() => page.playing && draw(), 1000 / FPS)
}

/** The clips of a picture with a row for each: lists of frames `[C · H · W]` in [0, 1]. */
async function readRows(path, rows, frames) {
  const picture = await createImageBitmap(await (await fetch(path)).blob(), { colorSpaceConversion: 'none' })
  const { height, width } = page.shape
  const context = new OffscreenCanvas(picture.width, picture.height).getContext('2d', { willReadFrequently: true })
  context.drawImage(picture, 0, 0)
  const frame = (row, column) => fromPixels(context.getImageData(column * width, row * height, width, height).data)
  return Array.from({ length: rows }, (_, row) => Array.from({ length: frames }, (_, column) => frame(row, column)))
}

// ---------------------------------------------------------------------------------------------- frames and pictures
/** A frame `[C · H · W]` in [0, 1] of RGBA bytes; grey as Pillow makes it where the model is grey. */
function fromPixels(data) {
  const { channels, pixels } = page.shape
  const frame = new Float32Array(channels * pixels)
  for (let i = 0; i < pixels; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]]
    if (channels === 1) frame[i] = ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) / 255
    else [r, g, b].forEach((value, c) => (frame[c * pixels + i] = value / 255))
  }
  return frame
}

/** The picture of a frame. */
function toImage(frame) {
  const { channels, pixels, height, width } = page.shape
  const image = new ImageData(width, height)
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(frame[(channels === 1 ? 0 : c) * pixels + i] * 255)
    image.data[4 * i + 3] = 255
  }
  return image
}

function paint(canvas, frame) {
  const image = toImage(frame)
  if (canvas.width !== image.width || canvas.height !== image.height) Object.assign(canvas, { width: image.width, height: image.height })
  canvas.getContext('2d').putImageData(image, 0, 0)
}

/** Draws frames beside each other on one canvas. */
function strip(canvas, frames) {
  const { height, width } = page.shape
  Object.assign(canvas, { width: frames.length * (width + 2), height })
  frames.forEach((frame, i) => canvas.getContext('2d').putImageData(toImage(frame), i * (width + 2), 0))
}

// ----------------------------------------------------------------------------------------------------- the controls
const tabs = () => [...document.querySelectorAll('[role=tab]')]
const source = () => document.querySelector('[name=source]:checked').value

/** Opens a tab: what belongs to other tabs, to another source or to a model with text is hidden. */
function choose(kind) {
  page.kind = kind
  for (const tab of tabs()) {
    const chosen = tab.dataset.kind === kind
    tab.setAttribute('aria-selected', chosen)
    tab.tabIndex = chosen ? 0 : -1
    if (chosen) $('panel').setAttribute('aria-labelledby', tab.id)
  }
  $('source-label').textContent = kind === 'predict' ? 'First frames from' : 'First and last frames from'
  $('given-label').textContent = kind === 'predict' ? 'First frames' : 'Frames at each end'
  $('make').textContent = ACTIONS[kind]
  refresh()
}

function refresh() {
  for (const item of document.querySelectorAll('[data-for]')) {
    const { for: kinds, source: from, missing } = item.dataset
    item.hidden = !kinds.split(' ').includes(page.kind) || (from && from !== source()) || missing === 'yes'
  }
  for (const slider of document.querySelectorAll('input[type=range]')) {
    document.querySelector(`output[for=${slider.id}]`).textContent = slider.value
  }
  if (page.clips.length) strip($('preview'), page.clips[$('clip').value].slice(0, 10))
}

function set(values) {
  if (values.kind) choose(values.kind)
  for (const name of ['clip', 'given', 'frames', 'steps', 'seed', 'prompt', 'follow']) {
    if (values[name] !== undefined) $(name).value = values[name]
  }
  if (values.clip !== undefined && page.model.clips) document.querySelector('[value="test"]').checked = true
  refresh()
}

/** What the controls ask for. */
function asked() {
  const number = id => Number($(id).value)
  const request = { kind: page.kind, frames: number('frames'), steps: number('steps'), seed: number('seed') }
  if (!Number.isInteger(request.seed) || request.seed < 0 || request.seed >= 2 ** 32) {
    throw new Error(`The seed is ${$('seed').value}, expected a whole number from 0 to ${2 ** 32 - 1}.`)
  }
  if (request.kind === 'generate') {
    const prompt = $('prompt').value.split(/\s+/).filter(Boolean).join(' ')
    return page.model.text && prompt ? { ...request, prompt, follow: number('follow') } : request
  }
  return { ...request, given: number('given'), clip: source() === 'test' ? number('clip') : null }
}

/** The frames that are given and their places, of the test clip or of the visitor's own. */
function given(request) {
  if (request.kind === 'generate') return { frames: [], places: [] }
  const from = source()
  const own = request.clip === null
  const all = own ? page.own[from] : page.clips[request.clip].slice(0, request.frames)
  if (own && !all.length) {
    throw new Error(from === 'draw' ? 'There are no drawn frames yet: draw one and press “Add frame”.' : 'Choose a file first.')
  }
  if (own && from === 'draw' && request.kind === 'predict') request.given = all.length
  const ends = request.kind === 'interpolate' ? 2 : 1
  const count = request.given
  if (count * ends >= request.frames) {
    throw new Error(`${count * ends} frames are given of ${request.frames}, expected fewer: see “Options”.`)
  }
  if (all.length < count * ends) throw new Error(`There are ${all.length} frames, expected at least the ${count * ends} given ones.`)
  const last = ends === 2 ? count : 0
  const places = [...Array(count).keys(), ...Array.from({ length: last }, (_, i) => request.frames - last + i)]
  const clip = [...all.slice(0, count), ...(last ? all.slice(-last) : [])]
  return { frames: clip, places }
}

// ------------------------------------------------------------------------------------------------------ the worker
let worker = null
let answers = null

function ask(message, transfer = []) {
  return new Promise((resolve, reject) => {
    answers = { resolve, reject }
    worker.postMessage(message, transfer)
  })
}

async function load() {
  if (worker) return
  worker = new Worker('worker.js', { type: 'module' })
  const received = {}
  worker.onerror = event => answers?.reject(new Error(event.message || 'The worker could not be started.'))
  worker.onmessage = ({ data }) => {
    if (data.kind === 'progress') {
      received[data.name] = data.done
      const total = Object.values(page.model.bytes).reduce((a, b) => a + b)
      const done = Object.values(received).reduce((a, b) => a + b)
      progress(done / total)
      const megabytes = bytes => (bytes / 1e6).toFixed(0)
      $('status').textContent = done < total ? `Fetching the model: ${megabytes(done)} of ${megabytes(total)} MB.` : 'Starting the model.'
    } else if (data.kind === 'step') {
      progress(data.done / data.total)
      $('status').textContent = `Step ${data.done} of ${data.total}.`
    } else if (data.kind === 'error') answers.reject(new Error(data.message))
    else answers.resolve(data)
  }
  try {
    const ready = await ask({ kind: 'load', backend: new URLSearchParams(location.search).get('backend') })
    page.backend = ready
    $('note').textContent =
      ready.backend === 'webgpu'
        ? 'The model runs on your graphics card.'
        : `The model runs on ${ready.threads} ${ready.threads === 1 ? 'core' : 'cores'} of your processor.`
  } catch (error) {
    worker.terminate()
    worker = null
    throw error
  }
}

async function make() {
  if (page.busy) return
  page.busy = true
  $('make').disabled = true
  try {
    const request = asked()
    const { frames, places } = given(request)
    progress(0)
    await load()
    const { channels, pixels } = page.shape
    const joined = new Float32Array(channels * frames.length * pixels)
    frames.forEach((frame, i) => {
      for (let c = 0; c < channels; c++) joined.set(frame.subarray(c * pixels, (c + 1) * pixels), (c * frames.length + i) * pixels)
    })
    say('The model begins.')
    const answer = await ask(
      { kind: 'make', frames: request.frames, given: joined, places, calls: request.steps, seed: request.seed, prompt: request.prompt, follow: request.follow },
      [joined.buffer],
    )
    const video = Array.from({ length: request.frames }, (_, f) => {
      const frame = new Float32Array(channels * pixels)
      for (let c = 0; c < channels; c++) {
        const at = (c * request.frames + f) * pixels
        frame.set(answer.video.subarray(at, at + pixels), c * pixels)
      }
      return frame
    })
    show(request, video, answer.seconds)
    remember(request)
    if (innerWidth <= 700) $('clips').scrollIntoView({ block: 'center' })
  } catch (error) {
    fail(error)
  } finally {
    page.busy = false
    $('make').disabled = false
    $('progress').hidden = true
  }
}

// ------------------------------------------------------------------------------------------------------- the result
function show(request, video, seconds) {
  const count = request.given ?? 0
  const places = new Set(
    [...video.keys()].filter(f => f < count || (request.kind === 'interpolate' && f >= request.frames - count)),
  )
  const truth = request.clip !== null && request.clip !== undefined ? page.clips[request.clip].slice(0, request.frames) : null
  const guess = request.kind === 'predict' ? 'the model’s guess' : 'the model’s clip'
  const clips = [...(truth ? [['what happened', truth]] : []), [guess, video]]
  page.shown = { request, clips, places, frame: 0, figures: clips.map(([name]) => figure(name)) }
  $('clips').replaceChildren(...page.shown.figures)
  const names = clips.map(([name]) => name).join('; ')
  const took = seconds === undefined ? '' : `: ${seconds.toFixed(1)} s`
  const how = `${request.frames} frames, ${request.steps} steps of ${page.model.sampler}, seed ${request.seed}${took}.`
  say(`${names[0].toUpperCase()}${names.slice(1)}. ${how}`)
  $('gif').disabled = false
  $('python').textContent = python(request)
  sheet()
  draw()
}

function figure(name) {
  const item = document.createElement('figure')
  const canvas = document.createElement('canvas')
  canvas.setAttribute('role', 'img')
  canvas.setAttribute('aria-label', `${name}, playing. Frames that were given have an orange border.`)
  const caption = document.createElement('figcaption')
  caption.textContent = name
  item.append(canvas, caption)
  return item
}

/** The next frame of all clips. */
function draw() {
  if (!page.shown) return
  const { clips, places, figures, request } = page.shown
  const f = page.shown.frame % request.frames
  clips.forEach(([, video], i) => {
    paint(figures[i].firstChild, video[f])
    figures[i].classList.toggle('given', places.has(f))
  })
  page.shown.frame = f + 1
}

function sheet() {
  const { clips, places } = page.shown
  const rows = clips.map(([name, video]) => {
    const row = document.createElement('div')
    const label = document.createElement('span')
    label.textContent = name
    const pictures = video.map((frame, f) => {
      const canvas = document.createElement('canvas')
      paint(canvas, frame)
      canvas.setAttribute('role', 'img')
      canvas.setAttribute('aria-label', `frame ${f}${places.has(f) ? ', given' : ''}`)
      canvas.classList.toggle('given', places.has(f))
      return canvas
    })
    row.append(label, ...pictures)
    return row
  })
  $('sheet').replaceChildren(...rows)
}

/** A GIF of the model's clip, without borders, as the page in Python gives it. */
function download() {
  const [, video] = page.shown.clips.at(-1)
  const { request } = page.shown
  const bytes = gif(video.map(toImage), Math.round(100 / FPS), Math.max(1, Math.floor(256 / page.shape.height)))
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([bytes], { type: 'image/gif' }))
  link.download = `${request.kind}-${request.seed}.gif`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

/** A program that makes the same clip, up to rounding. */
function python(request) {
  const { name, num_frames: trained, size } = page.model
  const known = request.kind !== 'generate'
  const count = request.given
  const lines = ['import torch', 'from video_diffusion.sampling import load_pipeline']
  if (known && request.clip === null) {
    lines.push('from video_diffusion.data.fitting import fit', 'from video_diffusion.data.reading import read_video', '')
    lines.push(`clip = fit(read_video("mine.gif"), ${size[0]}, ${size[1]})  # a file with your frames`)
  } else if (known) {
    lines.push('from video_diffusion.data import MovingMNIST', '')
    lines.push(`clip = MovingMNIST(split="test", num_frames=${request.frames}, image_size=${size[0]}, seed=0).batch([${request.clip}])[0][..., None]`)
  }
  lines.push('', `pipe = load_pipeline(${JSON.stringify(name)}, sampler="${page.model.sampler}", dtype="float32")`, 'frames = pipe(')
  if (request.kind === 'predict') lines.push(`    video=clip[:${count}],`)
  if (request.kind === 'interpolate') {
    lines.push(`    video=clip[[*range(${count}), *range(-${count}, 0)]],`)
    lines.push(`    frame_indices=[*range(${count}), *range(${request.frames - count}, ${request.frames})],`)
  }
  if (request.prompt) lines.push(`    prompt=${JSON.stringify(request.prompt)},`, `    guidance_scale=${request.follow},`)
  if (request.frames !== trained) lines.push(`    num_frames=${request.frames},`)
  lines.push(`    num_inference_steps=${request.steps},`)
  if (known) lines.push('    history_guidance_scale=1.0,')
  lines.push(`    generator=torch.Generator().manual_seed(${request.seed}),`, ').frames[0]  # a list of PIL images')
  return lines.join('\n')
}

// --------------------------------------------------------------------------------------------------------- the link
/** The end of a link to a clip; the page in Python reads the same. */
function query(request) {
  const values = new URLSearchParams({ kind: request.kind, frames: request.frames })
  for (const name of ['clip', 'given']) if (request[name] !== undefined) values.set(name, request[name])
  values.set('sampler', 'dpm++')
  for (const name of ['steps', 'seed', 'prompt', 'follow']) if (request[name] !== undefined) values.set(name, request[name])
  return values
}

function remember(request) {
  if (request.clip === null) {
    $('link').value = NO_LINK
    return
  }
  const address = new URL(location)
  address.search = query(request)
  history.replaceState(null, '', address)
  if (window.parent !== window) window.parent.postMessage({ queryString: address.search.slice(1) }, 'https://huggingface.co')
  $('link').value = address.href
}

/** What a link asks for, or null where it asks for nothing. */
function read(search) {
  const values = new URLSearchParams(search)
  const kind = values.get('kind')
  if (kind === null) return null
  if (!(kind in ACTIONS)) throw new Error(`The link asks for ${kind.slice(0, 40)}, expected one of ${Object.keys(ACTIONS)}.`)
  const { model } = page
  const most = { frames: [2, model.num_frames], given: [1, model.num_frames - 1], clip: [0, model.clips - 1], seed: [0, 2 ** 32 - 1], steps: [1, Infinity], follow: [1, 10] }
  const found = { kind }
  for (const [name, [low, high]] of Object.entries(most)) {
    if (!values.has(name)) continue
    const value = Number(values.get(name))
    if (!(value >= low && value <= high) || (name !== 'follow' && !Number.isInteger(value))) {
      throw new Error(`“${name}” is ${values.get(name).slice(0, 40)} in the link, expected ${low} to ${high}.`)
    }
    found[name] = value
  }
  if (found.steps !== undefined) found.steps = nearest(found.steps)
  if (values.has('prompt')) found.prompt = values.get('prompt').slice(0, 200)
  return found
}

/** The number of steps in the table that is nearest. */
function nearest(steps) {
  const known = Object.keys(page.model.steps).map(Number)
  return known.reduce((best, one) => (Math.abs(one - steps) < Math.abs(best - steps) ? one : best))
}

// -------------------------------------------------------------------------------------------------- frames of one's own
async function upload() {
  const files = [...$('files').files].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }))
  page.own.upload = []
  if (files.reduce((sum, file) => sum + file.size, 0) > MOST_BYTES) throw new Error('The files have more than 8 MB, expected less.')
  for (const file of files) page.own.upload.push(...(await readPicture(file)))
  strip($('uploaded'), page.own.upload.slice(0, 10))
  say(`${page.own.upload.length} frames were read.`)
}

/**
 * The frames of a picture, at the model's size: all of a GIF's, where the browser can take it apart. Writers of GIFs
 * merge equal frames into one that is shown for longer; it counts as often as the shortest one goes into it.
 */
async function readPicture(file) {
  const { height, width } = page.shape
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true })
  context.imageSmoothingQuality = 'high'
  const frame = picture => {
    context.fillRect(0, 0, width, height)
    const from = [picture.displayWidth ?? picture.width, picture.displayHeight ?? picture.height]
    const scale = Math.max(width / from[0], height / from[1]) // covers the frame, and is cut at the centre, as in training
    const [w, h] = from.map(edge => edge * scale)
    context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h)
    return fromPixels(context.getImageData(0, 0, width, height).data)
  }
  try {
    if (!('ImageDecoder' in window)) return [frame(await createImageBitmap(file))]
    const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type: file.type })
    await decoder.tracks.ready
    const found = []
    for (let i = 0; i < Math.min(decoder.tracks.selectedTrack.frameCount, MOST_FRAMES); i++) {
      const { image } = await decoder.decode({ frameIndex: i })
      found.push([frame(image), image.duration || 1])
      image.close()
    }
    const shortest = Math.min(...found.map(([, duration]) => duration))
    return found.flatMap(([one, duration]) => Array(Math.round(duration / shortest)).fill(one)).slice(0, MOST_FRAMES)
  } catch {
    throw new Error(`${file.name} could not be read, expected a GIF, PNG, JPEG or WebP.`)
  }
}

const pad = $('pad').getContext('2d', { willReadFrequently: true })
let pen = null

function press(event) {
  const box = $('pad').getBoundingClientRect()
  const at = [((event.clientX - box.left) * $('pad').width) / box.width, ((event.clientY - box.top) * $('pad').height) / box.height]
  if (event.type === 'pointerdown') {
    $('pad').setPointerCapture(event.pointerId)
    pen = at
  }
  if (!pen) return
  pad.strokeStyle = '#fff'
  pad.lineWidth = 14
  pad.lineCap = 'round'
  pad.beginPath()
  pad.moveTo(...pen)
  pad.lineTo(...at)
  pad.stroke()
  pen = at
}

/** The drawing as a frame, each of its pixels the mean of those that it covers. */
function drawing() {
  const { height, width } = page.shape
  const small = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true })
  small.fillRect(0, 0, width, height)
  small.imageSmoothingQuality = 'high'
  small.drawImage($('pad'), 0, 0, width, height)
  const frame = fromPixels(small.getImageData(0, 0, width, height).data)
  if (frame.every(value => value < 0.05)) throw new Error('The drawing is empty: draw on the black square first.')
  return frame
}

function moved(frame, right, down) {
  const { channels, height, width, pixels } = page.shape
  const out = new Float32Array(frame.length)
  for (let c = 0; c < channels; c++) {
    for (let y = Math.max(0, down); y < Math.min(height, height + down); y++) {
      for (let x = Math.max(0, right); x < Math.min(width, width + right); x++) {
        out[c * pixels + y * width + x] = frame[c * pixels + (y - down) * width + x - right]
      }
    }
  }
  return out
}

function add(count) {
  const frame = drawing()
  const room = page.model.num_frames - 1 - page.own.draw.length
  if (room < 1) throw new Error(`There are ${page.own.draw.length} frames, and the model makes at least one: start over.`)
  const [right, down] = [Number($('right').value), Number($('down').value)]
  for (let i = 0; i < Math.min(count, room); i++) page.own.draw.push(moved(frame, right * i, down * i))
  strip($('drawn'), page.own.draw)
}

function startOver() {
  page.own.draw = []
  pad.clearRect(0, 0, $('pad').width, $('pad').height)
  strip($('drawn'), [])
}

// -------------------------------------------------------------------------------------------------------- the events
function say(text) {
  $('status').textContent = text
}

function fail(error) {
  console.warn(error)
  say(error.message)
}

function progress(share) {
  $('progress').hidden = false
  $('progress').value = share
}

/** A function for an event: what goes wrong in it is said on the page. */
const safely = action => async event => {
  try {
    await action(event)
  } catch (error) {
    fail(error)
  }
}

function play(on) {
  page.playing = on
  $('play').textContent = on ? 'Pause' : 'Play'
  $('play').setAttribute('aria-pressed', on)
}

for (const tab of tabs()) {
  tab.addEventListener('click', () => choose(tab.dataset.kind))
  tab.addEventListener('keydown', event => {
    const open = tabs().filter(item => !item.hidden)
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
    if (!step) return
    const next = open[(open.indexOf(tab) + step + open.length) % open.length]
    choose(next.dataset.kind)
    next.focus()
  })
}
$('form').addEventListener('submit', event => {
  event.preventDefault()
  make()
})
$('form').addEventListener('input', refresh)
$('files').addEventListener('change', safely(upload))
for (const kind of ['pointerdown', 'pointermove']) $('pad').addEventListener(kind, press)
for (const kind of ['pointerup', 'pointercancel']) $('pad').addEventListener(kind, () => (pen = null))
$('add').addEventListener('click', safely(() => add(1)))
$('add-moving').addEventListener('click', safely(() => add(5)))
$('clear').addEventListener('click', startOver)
$('random').addEventListener('click', () => {
  $('seed').value = crypto.getRandomValues(new Uint32Array(1))[0]
})
$('gif').addEventListener('click', safely(download))
$('play').addEventListener('click', () => play(!page.playing))
if (matchMedia('(prefers-reduced-motion: reduce)').matches) play(false)
