// The index in memory. A row is an image, in the order in which files of the index came. Each field
// is a column: its different values, and for each row the place of its own, -1 where it has none.

const NUMBER = /^-?\d+(\.\d+)?$/; // seeds are texts where a number here would lose digits

class Column {
  constructor(field) {
    this.field = field;
    this.values = [];
    this.places = new Map();
    this.codes = new Int32Array(0);
    this.present = 0; // rows with a value
    this.numeric = true;
    this.derived = new Map(); // what was made of the values, such as their order
  }

  append(start, count, { values, codes }) {
    this.grow(start + count);
    const before = this.values.length;
    const own = values.map((value) => this.place(value));
    if (this.values.length > before) this.derived.clear();
    for (let n = 0; n < count; n++) {
      const code = codes ? codes[n] : values.length === 1 ? 0 : n;
      if (code < 0) continue;
      this.codes[start + n] = own[code];
      this.present++;
    }
  }

  place(value) {
    let code = this.places.get(value);
    if (code === undefined) {
      code = this.values.push(value) - 1;
      this.places.set(value, code);
      this.numeric &&= typeof value === "number" || (typeof value === "string" && NUMBER.test(value));
    }
    return code;
  }

  grow(length) {
    if (length <= this.codes.length) return;
    const codes = new Int32Array(Math.max(length, 2 * this.codes.length)).fill(-1);
    codes.set(this.codes);
    this.codes = codes;
  }

  of(row) {
    return this.values[this.codes[row]]; // undefined without one
  }

  get varies() {
    return this.present > 0 && (this.values.length > 1 || this.present < table.rows);
  }

  // What a function makes of all values, kept until there are more of them.
  made(name, make) {
    if (!this.derived.has(name)) this.derived.set(name, make(this.values));
    return this.derived.get(name);
  }

  get folded() {
    return this.made("folded", (values) => values.map((value) => fold(told(this.field, value))));
  }

  // Code -> place in the order of values: numbers by size, texts by their letters.
  get ranks() {
    return this.made("ranks", (values) => {
      const keys = this.numeric ? Float64Array.from(values, Number) : this.folded;
      const order = this.numeric
        ? new Uint32Array(values.keys()).sort((a, b) => keys[a] - keys[b])
        : [...values.keys()].sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0));
      const ranks = new Uint32Array(values.length);
      order.forEach((code, rank) => { ranks[code] = rank; });
      return ranks;
    });
  }

  // The lowest and the highest number.
  get span() {
    return this.made("span", (values) => values.map(Number).reduce(
      ([low, high], number) => [Math.min(low, number), Math.max(high, number)],
      [Infinity, -Infinity]));
  }
}

const table = {
  rows: 0,
  columns: new Map(),
  indices: [],
  paths: [],
  thumbnails: [],
  parts: [], // files of the index: {number, start, images}
  inOrder: true, // rows are in that of their indices
};

function column(field) {
  if (!table.columns.has(field)) table.columns.set(field, new Column(field));
  return table.columns.get(field);
}

const valueOf = (row, field) => table.columns.get(field)?.of(row);

function append(number, { images, fields }) {
  const start = table.rows;
  const { index, path, thumbnail, ...others } = fields;
  for (let n = 0; n < images; n++) {
    const next = index.values[n];
    if (start + n && next < table.indices[start + n - 1]) table.inOrder = false;
    table.indices.push(next);
    table.paths.push(path.values[path.codes ? path.codes[n] : n]);
    const small = thumbnail?.codes ? thumbnail.codes[n] : n;
    table.thumbnails.push(thumbnail?.values[small]);
  }
  table.rows += images;
  for (const [field, values] of Object.entries(others)) column(field).append(start, images, values);
  for (const one of table.columns.values()) one.grow(table.rows);
  table.parts.push({ number, start, images });
  starRows(start);
}

const partOf = (row) => table.parts.findLast((part) => part.start <= row);

function rowOfIndex(index) {
  return table.indices.indexOf(index);
}

// Fields of the facts below a picture: what pictures differ in, for the images at hand.
const FACTS = [
  "seed", ...page.settings.filter((key) => !["width", "height", "seed"].includes(key)),
  "loras", "embeddings", "vae", "init_image_name", "mask_name", "model", "size",
];

function factFields() {
  const labels = [...table.columns.keys()].filter((field) => field.startsWith(LABEL));
  return [...FACTS, ...labels].filter(
    (field) => field === "seed" || table.columns.get(field)?.varies);
}

function factsOf(row) {
  return factFields()
    .map((field) => [field, valueOf(row, field)])
    .filter(([, value]) => value !== undefined)
    .map(([field, value]) => told(field, value))
    .filter(Boolean)
    .map((fact) => (fact.length < 24 ? fact.replaceAll(" ", "\u00a0") : fact))
    .join("\u00a0· ");
}
