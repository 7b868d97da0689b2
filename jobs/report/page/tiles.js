// The tiles in view, and a few rows around them; the list may be of any length.

const ROWS_AROUND = 2;
const STEP_KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

const tiles = new Map(); // row -> its element
const grid = { columns: 1, width: 0, rowHeight: 1, gap: 16 };

let active = -1; // the row that has the focus, or had it

const sizeOf = (row) => String(valueOf(row, "size") ?? "1×1").split("×").map(Number);

// All alike, and in place before the pictures are: an even grid that does not jump.
function aspect() {
  const sizes = table.columns.get("size");
  if (!sizes || sizes.varies) return 1;
  const [width, height] = sizeOf(0);
  return width / height || 1;
}

function measure() {
  const style = getComputedStyle(byId("grid"));
  const [tile, words] = ["--tile", "--words"].map((name) => parseFloat(style.getPropertyValue(name)));
  const room = byId("grid").clientWidth;
  grid.gap = room < 500 ? 10 : 16;
  grid.columns = Math.max(1, Math.floor((room + grid.gap) / (tile + grid.gap)));
  grid.width = (room - grid.gap * (grid.columns - 1)) / grid.columns;
  grid.rowHeight = Math.round(grid.width / aspect() + words + grid.gap);
  measureList(Math.ceil(found.length / grid.columns) * grid.rowHeight);
}

// Tiles of pictures that are still in view are kept, as is their focus.
function showTiles() {
  const top = follow();
  const first = Math.max(0, Math.floor(top / grid.rowHeight) - ROWS_AROUND);
  const last = Math.ceil((top + viewHeight()) / grid.rowHeight) + ROWS_AROUND;
  const wanted = new Map();
  const end = Math.min(last * grid.columns, found.length);
  for (let place = first * grid.columns; place < end; place++) wanted.set(found[place], place);
  for (const [row, element] of tiles) {
    if (wanted.has(row)) continue;
    element.remove();
    tiles.delete(row);
  }
  let before = null;
  for (const [row, place] of wanted) {
    if (!tiles.has(row)) tiles.set(row, tile(row));
    const element = tiles.get(row);
    put(element, place);
    const next = before ? before.nextSibling : byId("grid").firstChild;
    if (next !== element) byId("grid").insertBefore(element, next); // keys go in the order of places
    before = element;
  }
}

function put(element, place) {
  const x = place % grid.columns * (grid.width + grid.gap);
  const y = Math.floor(place / grid.columns) * grid.rowHeight - list.shift;
  element.style.transform = `translate(${x}px, ${y}px)`;
  element.style.width = `${grid.width}px`;
  element.style.height = `${grid.rowHeight - grid.gap}px`;
  element.ariaSetSize = found.length;
  element.ariaPosInSet = place + 1;
}

function tile(row) {
  const item = make("li");
  const link = make("a", "tile");
  link.href = addressOf(table.paths[row]);
  const frame = make("span", "frame");
  frame.append(picture(row, frame));
  const words = make("div", "words");
  const prompt = valueOf(row, "prompt") ?? "";
  words.append(make("p", "line", prompt), make("p", "facts", factsOf(row)));
  words.title = `${prompt}\n${factsOf(row)}`;
  link.append(frame, words);
  link.addEventListener("focus", () => { active = row; });
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab with the file
    event.preventDefault();
    if (marked < 0) open(row);
    else mark(row);
  });
  link.classList.toggle("marked", row === marked);
  const star = make("button", "star");
  star.type = "button";
  star.tabIndex = -1; // with keys it is s, or the one in the viewer
  star.title = "Star (s)";
  star.ariaLabel = "Star";
  star.ariaPressed = String(isStarred(row));
  star.append(starIcon());
  star.addEventListener("click", () => toggleStar(row));
  item.append(link, star);
  return item;
}

const starIcon = () => byId("star").firstElementChild.cloneNode(true);

// The thumbnail, where there is one, else the image itself.
function picture(row, frame) {
  const image = make("img");
  const address = addressOf(table.paths[row]);
  const small = table.thumbnails[row];
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = valueOf(row, "prompt") ?? "";
  image.addEventListener("error", () => {
    if (image.getAttribute("src") === address) frame.classList.add("missing");
    else image.src = address;
  });
  image.src = small ? addressOf(small) : address;
  return image;
}

// Drawn anew: facts or sizes may say more or less than before.
function redraw() {
  const focused = tileOf(active)?.contains(document.activeElement);
  for (const element of tiles.values()) element.remove();
  tiles.clear();
  measure();
  showTiles();
  if (focused) focusTile(active);
}

const tileOf = (row) => tiles.get(row);

function focusTile(row) {
  tileOf(row)?.querySelector("a").focus({ preventScroll: true });
}

function bringIntoView(place) {
  const y = Math.floor(place / grid.columns) * grid.rowHeight;
  const top = follow();
  if (y < top) scrollToPlace(y - grid.gap);
  else if (y + grid.rowHeight > top + viewHeight()) scrollToPlace(y + grid.rowHeight - viewHeight());
  showTiles();
}

function firstInView() {
  return Math.max(0, Math.ceil(follow() / grid.rowHeight)) * grid.columns;
}

function moveBy(key) {
  if (!found.length) return;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns }[key];
  const at = found.indexOf(active);
  let place = at < 0 ? firstInView() : at + by;
  if (key === "Home") place = 0;
  if (key === "End") place = found.length - 1;
  if (at >= 0 && place < 0) return; // above the first row
  place = Math.min(Math.max(place, 0), found.length - 1);
  active = found[place];
  bringIntoView(place);
  focusTile(active);
}
