// Fields to filter by: those in which images differ, with few values, or with numbers.

const FEW = 12; // numbers up to so many are choices, more are a range
const MOST_CHOICES = 200; // texts with more values are searched rather than chosen
const MOST_FACETS = 60;

const NO_FACETS = new Set(["index", "path", "thumbnail"]);
const SHORT_PROMPTS = 20; // prompts and negative prompts are choices if there are no more of them

const FIELD_ORDER = Object.keys(page.labels);

function facetColumns() {
  return [...table.columns.values()].filter(isFacet).sort(byField).slice(0, MOST_FACETS);
}

function isFacet(one) {
  if (query.chosen.has(one.field)) return true;
  if (!one.varies || NO_FACETS.has(one.field)) return false;
  if (["prompt", "negative"].includes(one.field)) return one.values.length <= SHORT_PROMPTS;
  return one.numeric || one.values.length <= MOST_CHOICES;
}

function byField(a, b) {
  return placeOf(a.field) - placeOf(b.field);
}

// Labels stand before what is rather measured than chosen.
function placeOf(field) {
  return field.startsWith(LABEL) ? FIELD_ORDER.indexOf("model") - 0.5 : FIELD_ORDER.indexOf(field);
}

function isRange(one) {
  const choice = query.chosen.get(one.field);
  return choice ? !(choice instanceof Set) : one.numeric && one.values.length > FEW;
}

// Fields to order by: numbers and prompts.
function orderFields() {
  const sortable = [...table.columns.values()].filter(
    (one) => one.varies && (one.numeric || one.field === "prompt"));
  return ["index", ...sortable.sort(byField).map((one) => one.field)];
}
