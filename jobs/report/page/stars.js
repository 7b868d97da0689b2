// Stars: the browser keeps them for this job, and `sdbatch collect --from` takes them as a list.

const STARS_KEY = `sdbatch-stars:${page.job}`;
const MOST_STARS = 100_000;
const STARRED = "starred"; // the field that they are, as others are fields of records

page.labels = { [STARRED]: "Starred", ...page.labels };

const stars = new Set(storedStars()); // paths
let starsKept = true; // so far

// Anybody may have written there; some browsers keep nothing for pages that are files.
function storedStars() {
  try {
    const paths = JSON.parse(localStorage.getItem(STARS_KEY) ?? "[]");
    return paths.filter((path) => /^images\/[^\p{Cc}]+$/u.test(path)).slice(0, MOST_STARS);
  } catch {
    return [];
  }
}

function keepStars() {
  try {
    localStorage.setItem(STARS_KEY, JSON.stringify([...stars]));
    starsKept = true;
  } catch {
    starsKept = false;
  }
}

const isStarred = (row) => stars.has(table.paths[row]);

// Rows that have come from the index, of those pictures that had a star before.
function starRows(start) {
  if (!stars.size) return;
  const one = column(STARRED);
  one.grow(table.rows);
  for (let row = start; row < table.rows; row++) if (isStarred(row)) setStar(one, row, true);
}

function setStar(one, row, starred) {
  one.codes[row] = starred ? one.place(true) : -1;
  one.present += starred ? 1 : -1;
}

function toggleStar(row) {
  const path = table.paths[row];
  if (!stars.delete(path)) {
    if (stars.size >= MOST_STARS) return;
    stars.add(path);
  }
  const one = column(STARRED);
  one.grow(table.rows);
  setStar(one, row, isStarred(row));
  keepStars();
  showStar(row);
  answer();
}

function showStar(row) {
  const button = tileOf(row)?.querySelector(".star");
  if (button) button.ariaPressed = String(isStarred(row));
  if (row === current) byId("star").ariaPressed = String(isStarred(row));
}

function showStars() {
  const count = stars.size;
  byId("save-stars").hidden = !count;
  byId("save-stars").textContent = `Save ${plural(count, "star")} as a list`;
  byId("stars-lost").hidden = starsKept || !count;
}

// In the order of the plan; those of pictures that are not in the index follow.
function starList() {
  const rows = table.columns.has(STARRED)
    ? [...table.indices.keys()].filter(isStarred) : [];
  rows.sort((a, b) => table.indices[a] - table.indices[b]);
  const paths = new Set([...rows.map((row) => table.paths[row]), ...stars]);
  return [`# sdbatch stars of ${page.job}`, ...paths, ""].join("\n");
}

byId("save-stars").addEventListener("click", () => {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([starList()], { type: "text/plain" }));
  link.download = "stars.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});
byId("star").addEventListener("click", () => toggleStar(current));
