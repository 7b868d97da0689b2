// One picture with its parameters.

let current = -1; // its row

// Fields in the order of the page, as they are told of one image.
function fieldsOf(row, more) {
  const labels = [...table.columns.keys()].filter((field) => field.startsWith(LABEL));
  const place = FIELD_ORDER.indexOf("model");
  const fields = [...FIELD_ORDER.slice(0, place), ...labels, ...FIELD_ORDER.slice(place)];
  const all = {
    index: table.indices[row], path: table.paths[row], thumbnail: table.thumbnails[row], ...more,
  };
  return fields
    .map((field) => [field, all[field] ?? valueOf(row, field)])
    .filter(([, value]) => value !== undefined);
}

function open(row) {
  current = row;
  const address = addressOf(table.paths[row]);
  const image = byId("picture");
  // Not the picture before, until this one has come; and no other one where there is none.
  image.removeAttribute("src");
  image.src = address;
  image.alt = valueOf(row, "prompt") ?? "";
  byId("full").href = address;
  byId("prompt").textContent = valueOf(row, "prompt");
  byId("negative").textContent = valueOf(row, "negative") ?? "";
  showPosition();
  showStar(row);
  showParameters(row, {});
  detailsOf(row).then((more) => { if (row === current) showParameters(row, more); });
  if (!byId("viewer").open) {
    byId("viewer").showModal();
    byId("viewer").focus(); // rather than its first button
  }
  history.replaceState(null, "", `#${table.indices[row]}`);
}

// Where the picture is in the answer, which may have changed.
function showPosition() {
  const place = found.indexOf(current);
  byId("position").textContent = place < 0
    ? `Picture ${counted(table.indices[current])}`
    : `${counted(place + 1)} of ${counted(found.length)}`;
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place === found.length - 1 || place < 0;
}

function showParameters(row, more) {
  const rows = [];
  for (const [field, value] of fieldsOf(row, more)) {
    if (["prompt", "negative", "thumbnail", STARRED].includes(field)) continue;
    if (field === "size" && "width" in more) continue; // said by width and height
    const text = textOf(value);
    const long = text.length > 24 && !text.includes(" ");
    rows.push(make("dt", "", labelOf(field)), make("dd", long ? "long" : "", text));
  }
  byId("parameters").replaceChildren(...rows);
}

function step(by) {
  const place = found.indexOf(current) + by;
  if (found.includes(current) && place >= 0 && place < found.length) open(found[place]);
}

byId("viewer").addEventListener("close", () => {
  history.replaceState(null, "", location.pathname + location.search);
  active = current;
  const place = found.indexOf(current);
  if (place < 0) return;
  bringIntoView(place);
  focusTile(current);
});
byId("viewer").addEventListener("click", (event) => {
  if (event.target === byId("viewer")) byId("viewer").close(); // the backdrop
});
byId("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
  if (event.key === "s") toggleStar(current);
  if (event.key === "a") byId("compare-with").click();
});
byId("close").addEventListener("click", () => byId("viewer").close());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));

// A manifest's prompt entry: JSON is YAML, so it can be pasted after a dash. The seed goes in as
// digits, since it may be larger than a number here can hold.
async function entryOf(row) {
  const values = Object.fromEntries(fieldsOf(row, await detailsOf(row)));
  for (const key of ["init_image", "mask"]) { // as seen from the job's folder
    if (values[key] !== undefined) values[key] = `inputs/${values[key]}`;
  }
  const keys = ["prompt", "negative", "init_image", "mask", ...page.settings];
  const pairs = keys
    .filter((key) => values[key] !== undefined && values[key] !== false)
    .filter((key) => !(["negative", "eta"].includes(key) && !values[key]))
    .map((key) => `${JSON.stringify(key)}: ${JSON.stringify(values[key])}`);
  return `{${pairs.join(", ")}, "seeds": [${values.seed}]}`;
}

async function copy(button, text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else { // a page served without TLS
    const area = make("textarea", "unseen");
    area.value = text;
    byId("viewer").append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  button.disabled = true;
  setTimeout(() => { button.textContent = label; button.disabled = false; }, 1200);
}

byId("copy-prompt").addEventListener("click", ({ currentTarget }) =>
  copy(currentTarget, valueOf(current, "prompt") ?? ""));
byId("copy-entry").addEventListener("click", async ({ currentTarget }) =>
  copy(currentTarget, await entryOf(current)));
