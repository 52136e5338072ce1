// The model, beside the page, so that the page stays awake. It speaks in messages:
//   load → progress…, ready          make → step…, clip          and error where something failed.

import { agrees, networkInput, normal, solve, tokenise } from './sampler.js'

const RUNTIMES = {
  webgpu: ['./ort/ort.webgpu.bundle.min.mjs', './ort/ort-wasm-simd-threaded.asyncify.wasm'],
  wasm: ['./ort/ort.wasm.bundle.min.mjs', './ort/ort-wasm-simd-threaded.wasm'],
}
const CLOSE = 0.02 // as near as a graphics card must come to exported values before it is trusted
const MOST_THREADS = 8

let ort, backend, model, unet, encoder
const texts = new Map()

onmessage = async ({ data }) => {
  try {
    if (data.kind === 'load') postMessage({ kind: 'ready', ...(await load(data.backend)) })
    else if (data.kind === 'make') {
      const clip = await make(data)
      postMessage({ kind: 'clip', id: data.id, ...clip }, [clip.video.buffer])
    }
  } catch (error) {
    postMessage({ kind: 'error', id: data.id, message: error?.message ?? String(error) })
  }
}

/** Fetches the model once and starts it on what this browser has, or on what is asked for. */
async function load(asked) {
  model = await (await fetched('./model/model.json')).json()
  const files = ['unet.onnx', ...(model.text ? ['text_encoder.onnx'] : [])]
  const graphs = await Promise.all(files.map(download))
  const choices = asked ? [asked] : (await hasGraphicsCard()) ? ['webgpu', 'wasm'] : ['wasm']
  for (const choice of choices) {
    try {
      await start(choice, graphs)
      return { backend, threads: backend === 'wasm' ? ort.env.wasm.numThreads : null }
    } catch (error) {
      if (choice === choices.at(-1)) throw error
      console.warn(`${choice}: ${error?.message ?? error}; the processor is used.`)
    }
  }
}

async function start(choice, graphs) {
  const [script, wasm] = RUNTIMES[choice]
  ort = await import(script)
  ort.env.wasm.wasmPaths = { wasm: new URL(wasm, import.meta.url).href }
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1
  ort.env.logLevel = 'error'
  backend = choice
  unet = await ort.InferenceSession.create(graphs[0], { executionProviders: [choice] })
  encoder = graphs[1] && (await ort.InferenceSession.create(graphs[1], { executionProviders: ['wasm'] }))
  texts.clear()
  if (choice === 'webgpu') await probe()
}

/** Refuses a graphics card whose numbers are not those that were exported. */
async function probe() {
  const shape = shapeOf(model.probe.frames)
  const output = await predictor(shape, new Float32Array(shape.size), [], '', 1)(normal(0, shape.size), model.probe.time)
  if (!agrees(output, model.probe, CLOSE)) throw new Error('this graphics card computes something else')
}

async function hasGraphicsCard() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter())
  } catch {
    return false
  }
}

async function fetched(path) {
  const answer = await fetch(new URL(path, import.meta.url))
  if (!answer.ok) throw new Error(`${path} was not found (${answer.status}).`)
  return answer
}

/** The bytes of a file of the model; the page is told how much has come. */
async function download(name) {
  const answer = await fetched(`./model/${name}`)
  const total = model.bytes[name]
  const bytes = new Uint8Array(total)
  let done = 0
  for (const reader = answer.body.getReader(); ; ) {
    const { value, done: over } = await reader.read()
    if (over) break
    bytes.set(value, done)
    done += value.length
    postMessage({ kind: 'progress', name, done, total })
  }
  if (done !== total) throw new Error(`${name} has ${done} bytes, expected ${total}: reload the page.`)
  return bytes
}

/**
 * A clip `[C, F, H, W]` in [0, 1].
 *
 * `given` are frames `[C, k, H, W]` in [0, 1] at `places`; `noise` is standard normal, or comes from `seed`; `follow`
 * is the weight of guidance by the prompt, 1 for none.
 */
async function make({ frames, given, places = [], calls, seed = 0, noise, prompt = '', follow = 1 }) {
  const begin = performance.now()
  const row = (places.length ? undefined : model.free_steps?.[calls]) ?? model.steps[calls]
  if (!row) throw new Error(`The model has no ${calls} steps, expected one of ${Object.keys(model.steps)}.`)
  const shape = shapeOf(frames)
  const known = spread(given, places, shape)
  const predict = predictor(shape, known, places, prompt, prompt ? follow : 1)
  const report = (done, total) => postMessage({ kind: 'step', done, total })
  const z = await solve(predict, row, model, noise ?? normal(seed, shape.size), report)
  const video = z.map(value => Math.min(1, Math.max(0, (value + 1) / 2)))
  for (const [c, place, at] of givenFrames(places, shape)) {
    const from = (c * places.length + places.indexOf(place)) * shape.pixels
    video.set(given.subarray(from, from + shape.pixels), at)
  }
  return { video, seconds: (performance.now() - begin) / 1000 }
}

function shapeOf(frames) {
  const [height, width] = model.size
  const channels = model.out_channels
  const pixels = height * width
  return { frames, height, width, channels, pixels, size: channels * frames * pixels, reads: model.in_channels > channels }
}

/** Each given frame of each channel: channel, place, and where it starts in a clip. */
function givenFrames(places, { channels, frames, pixels }) {
  const all = Array.from({ length: channels }, (_, c) => c)
  return all.flatMap(c => places.map(place => [c, place, (c * frames + place) * pixels]))
}

/** Given frames in their places in a clip, in [-1, 1]; 0 elsewhere. */
function spread(given, places, shape) {
  const known = new Float32Array(shape.size)
  for (const [c, place, at] of givenFrames(places, shape)) {
    const from = (c * places.length + places.indexOf(place)) * shape.pixels
    for (let i = 0; i < shape.pixels; i++) known[at + i] = given[from + i] * 2 - 1
  }
  return known
}

/** The network as a function of z and t, with text and its guidance: by a second side, or as an input where it reads it. */
function predictor(shape, known, places, prompt, follow) {
  const sides = follow > 1 && !model.reads_guidance ? ['', prompt] : [prompt]
  return async (z, t) => {
    const input = networkInput(z, known, places, shape)
    const both = new Float32Array(input.length * sides.length)
    sides.forEach((_, i) => both.set(input, i * input.length))
    const dims = [sides.length, model.in_channels, shape.frames, shape.height, shape.width]
    const feed = {
      sample: new ort.Tensor('float32', both, dims),
      timestep: new ort.Tensor('float32', new Float32Array(sides.length).fill(t), [sides.length]),
      ...(await textInputs(sides)),
      ...(model.reads_guidance && { guidance_scale: new ort.Tensor('float32', [Math.max(follow, 1)], [1]) }),
    }
    const { out_sample: answer } = await unet.run(feed)
    const output = await answer.getData()
    answer.dispose()
    if (sides.length === 1) return output
    const [free, bound] = [output.subarray(0, shape.size), output.subarray(shape.size)]
    return free.map((value, i) => value + follow * (bound[i] - value))
  }
}

/** The text's states and their mask, one row for each side; nothing for a model without text. */
async function textInputs(sides) {
  if (!model.text_width) return {}
  const rows = await Promise.all(sides.map(states))
  const length = rows[0].length / model.text_width
  const all = new Float32Array(rows.length * rows[0].length)
  rows.forEach((row, i) => all.set(row, i * row.length))
  return {
    encoder_hidden_states: new ort.Tensor('float32', all, [rows.length, length, model.text_width]),
    attention_mask: new ort.Tensor('bool', new Uint8Array(rows.length * length).fill(1), [rows.length, length]),
  }
}

async function states(text) {
  if (!model.text) return new Float32Array(model.text_width)
  if (!texts.has(text)) {
    const { ids, mask } = tokenise(text, model.text)
    const tensor = values => new ort.Tensor('int64', values, [1, values.length])
    const { states } = await encoder.run({ input_ids: tensor(ids), attention_mask: tensor(mask) })
    texts.set(text, await states.getData())
  }
  return texts.get(text)
}
