// The question: words, values of fields, an order. Its answer: the rows, and how many images each
// value would leave.

const query = {
  words: [],
  chosen: new Map(), // field -> a set of values, or {from, to}; undefined is the value of none
  order: "index",
  reverse: false,
};

let found = new Uint32Array(0); // rows of the answer, in order

const NEVER = 2; // of images without the words: they count nowhere

function ask() {
  const { rows, columns } = table;
  const misses = new Uint8Array(rows); // how many of the chosen fields leave an image out
  const missed = new Uint8Array(rows); // one of them
  for (const word of query.words) leaveOut(misses, word);
  const facets = facetColumns();
  facets.forEach(({ field, codes }, place) => {
    if (!query.chosen.has(field)) return;
    const allowed = allowedCodes(columns.get(field), query.chosen.get(field));
    for (let row = 0; row < rows; row++) {
      if (allowed[codes[row] + 1] || misses[row] === NEVER) continue;
      misses[row]++;
      missed[row] = place;
    }
  });
  const counts = new Map(facets.map((facet, place) =>
    [facet.field, countsOf(facet, misses, missed, place)]));
  let length = 0;
  found = new Uint32Array(rows);
  for (let row = 0; row < rows; row++) if (!misses[row]) found[length++] = row;
  found = ordered(found.subarray(0, length));
  return counts;
}

// A word is to stand in one of the texts of an image.
function leaveOut(misses, word) {
  const hit = new Uint8Array(table.rows);
  for (const field of ["prompt", "negative", ...factFields()]) {
    const one = table.columns.get(field);
    if (!one) continue;
    const hits = Uint8Array.from(one.folded, (text) => text.includes(word));
    if (!hits.includes(1)) continue;
    for (let row = 0; row < table.rows; row++) if (hits[one.codes[row]]) hit[row] = 1;
  }
  for (let row = 0; row < table.rows; row++) if (!hit[row]) misses[row] = NEVER;
}

// By code + 1, so that place 0 is for images without a value.
function allowedCodes({ values }, choice) {
  const allowed = new Uint8Array(values.length + 1);
  if (choice instanceof Set) {
    allowed[0] = choice.has(undefined);
    values.forEach((value, code) => { allowed[code + 1] = choice.has(value); });
  } else {
    values.forEach((value, code) => {
      allowed[code + 1] = choice.from <= Number(value) && Number(value) <= choice.to;
    });
  }
  return allowed;
}

// Images by code + 1, of those that only this field leaves out, if any does.
function countsOf({ codes, values }, misses, missed, place) {
  const counts = new Uint32Array(values.length + 1);
  for (let row = 0; row < table.rows; row++) {
    if (!misses[row] || (misses[row] === 1 && missed[row] === place)) counts[codes[row] + 1]++;
  }
  return counts;
}

function ordered(rows) {
  if (query.order === "index") {
    const { indices } = table;
    if (!table.inOrder) rows.sort((a, b) => indices[a] - indices[b]);
    return query.reverse ? rows.reverse() : rows;
  }
  const { codes, ranks } = table.columns.get(query.order);
  const last = ranks.length; // images without a value
  const rankOf = (row) => {
    if (codes[row] < 0) return last;
    return query.reverse ? last - 1 - ranks[codes[row]] : ranks[codes[row]];
  };
  // Counted rather than compared: as quick with a million.
  const starts = new Uint32Array(last + 2);
  for (const row of rows) starts[rankOf(row) + 1]++;
  for (let rank = 0; rank <= last; rank++) starts[rank + 1] += starts[rank];
  const sorted = new Uint32Array(rows.length);
  for (const row of rows) sorted[starts[rankOf(row)]++] = row;
  return sorted;
}
