// The block of data in the page becomes tables of numbers and names (exporters/html_data.py says how it is packed).

/** Base64 in an element's text, inflated. */
async function inflate(text) {
  const packed = Uint8Array.from(atob(text.replace(/\s+/g, "")), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A column as numbers: its lowest bytes, then its second lowest and so on. */
function column(bytes, start, named, Kind) {
  const values = new Kind(named.count);
  let factor = 1;
  for (let place = 0; place < named.bytes; place++, factor *= 256) {
    const from = start + named.at + place * named.count;
    for (let index = 0; index < named.count; index++) values[index] += bytes[from + index] * factor;
  }
  return values;
}

/** Samples of a vCPU in time order; times are ends, in nanoseconds of guest running time. */
function unpackTrack(packed, read) {
  const weight = read(packed.weight, Float64Array);
  const time = read(packed.gap, Float64Array);
  let now = 0;
  for (let index = 0; index < time.length; index++) {
    const coded = time[index];
    now += (coded % 2 ? -(coded + 1) / 2 : coded / 2) + weight[index];
    time[index] = now;
  }
  const samples = read(packed.count, Uint32Array);
  return { vcpu: packed.vcpu, stack: read(packed.stack, Uint32Array), weight, time, samples };
}

/** What hangs together in the tree of stacks: each node's parent, and where the nodes below it end. */
function linkNodes(nodes) {
  const count = nodes.depth.length;
  nodes.parent = new Int32Array(count).fill(-1);
  nodes.end = new Int32Array(count).fill(count);
  const open = [];
  for (let node = 0; node < count; node++) {
    while (open.length > nodes.depth[node]) nodes.end[open.pop()] = node;
    if (open.length) nodes.parent[node] = open[open.length - 1];
    open.push(node);
  }
}

/** Everything that the page shows. */
async function unpack(text) {
  const bytes = await inflate(text);
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const read = (named, Kind) => column(bytes, 4 + length, named, Kind);
  data.nodes = { depth: read(data.nodes.depth, Uint32Array), function: read(data.nodes.function, Uint32Array) };
  linkNodes(data.nodes);
  for (const [name, named] of Object.entries(data.stacks)) data.stacks[name] = read(named, Uint32Array);
  for (const [name, named] of Object.entries(data.comparison)) {
    if (name.endsWith("_worth")) data.comparison[name] = read(named, Uint8Array);
  }
  for (const run of data.runs) run.vcpus = run.vcpus.map((packed) => unpackTrack(packed, read));
  return data;
}
