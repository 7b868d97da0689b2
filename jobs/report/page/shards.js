// Files of the index. A page that is opened as a file may fetch nothing, but it may load scripts:
// each is one call, of a function here, with JSON as a text.

const AHEAD = 4; // files asked for before the one that is waited for has come
const DETAILS_KEPT = 8;

const incoming = new Map(); // address -> what takes its text

const scriptTypes = window.trustedTypes?.createPolicy("shards", {
  createScriptURL(address) {
    if (!/^gallery\/\d{5,}(-details)?\.js$/.test(address)) throw new TypeError(address);
    return address;
  },
});

const fileOf = (number, more = "") => `gallery/${String(number).padStart(5, "0")}${more}.js`;

function indexShard(number, text) {
  incoming.get(fileOf(number))?.(text);
}

function detailShard(number, text) {
  incoming.get(fileOf(number, "-details"))?.(text);
}

// What a file holds; null if it is not there or damaged.
function load(address) {
  return new Promise((resolve) => {
    const script = make("script");
    const end = (text) => {
      incoming.delete(address);
      script.remove();
      try {
        resolve(JSON.parse(text));
      } catch {
        resolve(null);
      }
    };
    incoming.set(address, end);
    script.addEventListener("load", () => incoming.has(address) && end("null"));
    script.addEventListener("error", () => end("null"));
    script.src = scriptTypes ? scriptTypes.createScriptURL(address) : address;
    document.head.append(script);
  });
}

// Loads all of the index, first the file with the picture that the address names.
async function loadIndex(wanted, progress) {
  const isWanted = ([, , first, last]) => first <= wanted && wanted <= last;
  const files = [...page.shards.filter(isWanted), ...page.shards.filter((one) => !isWanted(one))];
  const asked = [];
  let lost = 0;
  for (const [place, [number]] of files.entries()) {
    while (asked.length < AHEAD && place + asked.length < files.length) {
      asked.push(load(fileOf(files[place + asked.length][0])));
    }
    const found = await asked.shift();
    if (found) append(number, found);
    else lost++;
    progress(place + 1 === files.length, lost);
  }
  if (!files.length) progress(true, 0);
}

const details = new Map(); // number of a file -> promise of its fields, the last asked for last

// Fields of an image that are not in the index.
async function detailsOf(row) {
  const { number, start } = partOf(row);
  const loading = details.get(number) ?? load(fileOf(number, "-details"));
  details.delete(number);
  details.set(number, loading);
  if (details.size > DETAILS_KEPT) details.delete(details.keys().next().value);
  const found = {};
  for (const [field, { values, codes }] of Object.entries((await loading)?.fields ?? {})) {
    const code = codes ? codes[row - start] : values.length === 1 ? 0 : row - start;
    if (code >= 0) found[field] = values[code];
  }
  return found;
}
