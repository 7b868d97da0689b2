// Two pictures beside or upon one another, and what they differ in.

const IDENTITY = new Set(["path", "name", "sha256", "thumbnail", "index", STARRED]);

let marked = -1; // the row that waits for another one
let pair = []; // the two rows that are compared

function mark(row) {
  if (marked >= 0 && marked !== row) {
    compare(marked, row);
    return;
  }
  setMark(marked === row ? -1 : row);
}

function setMark(row) {
  const before = marked;
  marked = row;
  for (const one of [before, row]) tileOf(one)?.firstElementChild.classList.toggle("marked", one === marked);
  byId("comparing").hidden = marked < 0;
  if (marked >= 0) byId("compared").textContent = counted(table.indices[marked]);
}

function compare(a, b) {
  setMark(-1);
  pair = [a, b];
  for (const [place, row] of pair.entries()) {
    const image = byId(`picture-${"ab"[place]}`);
    image.src = addressOf(table.paths[row]);
    image.alt = valueOf(row, "prompt") ?? "";
    byId(`name-${"ab"[place]}`).textContent = `${"AB"[place]} · ${counted(table.indices[row])}`;
  }
  showDifferences({}, {});
  Promise.all(pair.map(detailsOf)).then((more) => {
    if (pair[0] === a && pair[1] === b) showDifferences(...more);
  });
  if (!byId("compare").open) byId("compare").showModal();
}

function showDifferences(...more) {
  const [a, b] = pair.map((row, place) => Object.fromEntries(fieldsOf(row, more[place])));
  const fields = [...new Set([...Object.keys(a), ...Object.keys(b)])]
    .filter((field) => a[field] !== b[field] && !IDENTITY.has(field))
    .filter((field) => field !== "size" || a.width === undefined); // said by width and height
  const text = (value) => (value === undefined || value === "" ? "none" : textOf(value));
  byId("differences").replaceChildren(...fields.map((field) => {
    const row = make("tr");
    const label = make("th", "", labelOf(field));
    label.scope = "row";
    row.append(label, make("td", "", text(a[field])), make("td", "", text(b[field])));
    return row;
  }));
  byId("alike").hidden = fields.length > 0;
}

function slide(sliding) {
  byId("pair").classList.toggle("sliding", sliding);
  byId("beside").ariaPressed = String(!sliding);
  byId("upon").ariaPressed = String(sliding);
}

byId("curtain").addEventListener("input", ({ target }) =>
  byId("pair").style.setProperty("--cut", `${target.value}%`));
byId("beside").addEventListener("click", () => slide(false));
byId("upon").addEventListener("click", () => {
  slide(true);
  byId("curtain").focus();
});
byId("swap").addEventListener("click", () => compare(pair[1], pair[0]));
byId("end-compare").addEventListener("click", () => byId("compare").close());
byId("compare").addEventListener("click", (event) => {
  if (event.target === byId("compare")) byId("compare").close(); // the backdrop
});
byId("compare").addEventListener("close", () => focusTile(pair[1]));
byId("unmark").addEventListener("click", () => setMark(-1));
byId("compare-with").addEventListener("click", () => {
  const row = current;
  byId("viewer").close();
  mark(row);
});
