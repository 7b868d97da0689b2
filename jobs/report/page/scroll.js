// Places of tiles in a list of any length. Browsers limit an element's height, so a longer list is
// a window that moves over it: slow scrolling moves both alike, a jump goes to its share.

const TALLEST = 8e6; // pixels; some browsers have room for little more

const list = { top: 0, total: 0, shift: 0, before: 0 };

// Pixels of the window that the header covers as the list is scrolled.
function covered() {
  return byId("header").offsetHeight + Math.min(0, parseFloat(getComputedStyle(byId("header")).top));
}

// The view is the window below the header.
const viewHeight = () => window.innerHeight - covered();
const room = () => Math.min(list.total, TALLEST);
const pageTop = () => window.scrollY + covered() - list.top;

// The list's height may have changed: the same row stays in view.
function measureList(total) {
  list.top = byId("grid").getBoundingClientRect().top + window.scrollY;
  if (list.total === total) return;
  list.total = total;
  byId("grid").style.height = `${room()}px`;
  follow(true);
}

// The place of the list at the top of the view; negative above the list.
function follow(jumped = false) {
  const top = pageTop();
  const end = room() - viewHeight();
  const isFar = jumped || Math.abs(top - list.before) > 2 * viewHeight();
  if (list.total <= TALLEST || top <= 0) list.shift = 0;
  else if (top >= end) list.shift = list.total - TALLEST;
  else if (isFar) list.shift = Math.round(top / end * (list.total - viewHeight()) - top);
  list.before = top;
  return top + list.shift;
}

// Bring a place of the list to the top of the view.
function scrollToPlace(y) {
  const last = Math.max(0, list.total - viewHeight());
  const place = Math.min(y, last); // above the list it is negative
  const isAsIs = list.total <= TALLEST || place <= 0;
  const top = isAsIs ? place : Math.round(place / last * (TALLEST - viewHeight()));
  list.shift = place - top;
  list.before = top;
  window.scrollTo({ top: top + list.top - covered(), behavior: "instant" });
}
