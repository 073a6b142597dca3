// What node and the browser's page both do: hold sessions of onnxruntime-web and time them.

/** The smallest step of performance.now(), ms. */
function clockStep() {
  let least = Infinity;
  for (let i = 0; i < 20; i++) {
    const start = performance.now();
    let next = start;
    while (next === start) next = performance.now();
    least = Math.min(least, next - start);
  }
  return least;
}

export function makeEngine(ort, threads) {
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  const step = clockStep();
  const sessions = [];

  /** How long `repeats` inferences took, ms. */
  async function elapsed({ session, feeds }, repeats) {
    const start = performance.now();
    for (let i = 0; i < repeats; i++) await session.run(feeds);
    return performance.now() - start;
  }

  return {
    about: async () => ({ version: ort.env.versions.web, step }),

    /** Makes a session of a model (base64) and runs it once; its number. A dynamic axis gets the size `batch`. */
    async compile(model, batch) {
      const bytes = Uint8Array.from(atob(model), (letter) => letter.charCodeAt(0));
      const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
      const feeds = {};
      for (const { name, type, shape } of session.inputMetadata) {
        const sizes = shape.map((size) => (typeof size === "number" && size >= 0 ? size : batch));
        const data = Float32Array.from({ length: sizes.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i));
        feeds[name] = new ort.Tensor(type, data, sizes);
      }
      await session.run(feeds);
      return sessions.push({ session, feeds, repeats: 0 }) - 1;
    },

    /** The outputs, in order, of these inputs by name, each {shape, data}. */
    async outputs(number, inputs) {
      const { session } = sessions[number];
      const feeds = {};
      for (const [name, { shape, data }] of Object.entries(inputs)) feeds[name] = new ort.Tensor("float32", Float32Array.from(data), shape);
      const results = await session.run(feeds);
      return session.outputNames.map((name) => ({ shape: results[name].dims, data: Array.from(results[name].data) }));
    },

    run: async (number) => void (await sessions[number].session.run(sessions[number].feeds)),

    /** How many inferences are timed together: enough to last 100 steps of the clock. */
    async repeats(number) {
      const model = sessions[number];
      if (!model.repeats) {
        for (model.repeats = 1; (await elapsed(model, model.repeats)) < 100 * step; ) model.repeats *= 2;
      }
      return model.repeats;
    },

    /** How long each of `runs` inferences took, ms; each the mean of so many. */
    async time(number, runs) {
      const repeats = await this.repeats(number);
      const times = [];
      for (let i = 0; i < runs; i++) times.push((await elapsed(sessions[number], repeats)) / repeats);
      return times;
    },
  };
}

/** The answer to a question {call, with}: {value}, or {error} with the first line of what went wrong. */
export async function answer(engine, { call, with: values }) {
  try {
    return { value: (await engine[call](...values)) ?? null };
  } catch (error) {
    return { error: String(error?.message ?? error).split("\n")[0] };
  }
}
