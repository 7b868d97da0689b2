// The panel of filters, and what is told above the pictures.

const SHOWN_CHOICES = 8;

const panels = new Map(); // field -> its element and how to bring it up to date

function showFilters(counts) {
  const facets = facetColumns();
  for (const [field, panel] of panels) {
    const facet = facets.find((one) => one.field === field);
    if (facet && panel.isRange === isRange(facet)) continue;
    panel.element.remove();
    panels.delete(field);
  }
  let before = null;
  for (const facet of facets) {
    if (!panels.has(facet.field)) panels.set(facet.field, panelOf(facet));
    const panel = panels.get(facet.field);
    panel.update(counts.get(facet.field));
    const place = before ? before.nextSibling : byId("facets").firstChild;
    if (place !== panel.element) byId("facets").insertBefore(panel.element, place);
    before = panel.element;
  }
  byId("no-facets").hidden = facets.length > 0;
  const active = query.chosen.size;
  byId("active").textContent = active ? counted(active) : "";
  byId("clear").hidden = !active && !query.words.length;
}

function panelOf(facet) {
  const element = make("details", "facet");
  element.open = panels.size < 8 || facet.field === STARRED;
  element.dataset.field = facet.field;
  const summary = make("summary", "", labelOf(facet.field));
  element.append(summary);
  const range = isRange(facet);
  const update = range ? rangeOf(facet, element) : choicesOf(facet, element);
  return {
    element,
    isRange: range,
    update(counts) {
      summary.classList.toggle("chosen", query.chosen.has(facet.field));
      update(counts);
    },
  };
}

// Checkboxes with counts, the first few at once.
function choicesOf(facet, element) {
  const list = make("ul");
  const more = make("button", "more");
  const items = new Map(); // code -> its item
  let all = false;
  more.type = "button";
  more.addEventListener("click", () => { all = !all; answer(); });
  element.append(list, more);
  return (counts) => {
    const codes = [...facet.values.keys()];
    if (facet.numeric) codes.sort((a, b) => facet.ranks[a] - facet.ranks[b]);
    if (facet.present < table.rows) codes.push(-1);
    const chosen = query.chosen.get(facet.field);
    const shown = codes.filter((code, place) =>
      all || place < SHOWN_CHOICES || chosen?.has(facet.values[code]));
    for (const code of shown) {
      if (!items.has(code)) items.set(code, choice(facet, code));
      const { item, box, number } = items.get(code);
      box.checked = chosen?.has(facet.values[code]) ?? false;
      number.textContent = counted(counts[code + 1]);
      item.classList.toggle("empty", !counts[code + 1]);
    }
    const wanted = shown.map((code) => items.get(code).item);
    if (wanted.length !== list.children.length
      || wanted.some((item, place) => item !== list.children[place])) {
      const focused = document.activeElement;
      list.replaceChildren(...wanted);
      if (list.contains(focused)) focused.focus();
    }
    more.hidden = codes.length <= SHOWN_CHOICES;
    more.textContent = all ? "Fewer" : `All ${counted(codes.length)}`;
  };
}

function choice(facet, code) {
  const value = facet.values[code];
  const item = make("li");
  const label = make("label");
  const box = make("input");
  box.type = "checkbox";
  box.addEventListener("change", () => {
    const chosen = new Set(query.chosen.get(facet.field));
    if (box.checked) chosen.add(value);
    else chosen.delete(value);
    if (chosen.size) query.chosen.set(facet.field, chosen);
    else query.chosen.delete(facet.field);
    changed();
  });
  const text = value === undefined ? "none" : textOf(value) || "empty";
  const words = make("span", "value", text);
  words.title = text;
  const number = make("span", "number");
  label.append(box, words, number);
  item.append(label);
  return { item, box, number };
}

// Two numbers.
function rangeOf(facet, element) {
  const inputs = ["from", "to"].map((name) => {
    const input = make("input");
    input.type = "number";
    input.step = "any";
    input.setAttribute("aria-label", `${labelOf(facet.field)} ${name}`);
    input.addEventListener("input", take);
    return input;
  });
  function take() {
    const [from, to] = inputs.map((input) => input.value.trim());
    if (from || to) {
      const range = { from: from ? Number(from) : -Infinity, to: to ? Number(to) : Infinity };
      query.chosen.set(facet.field, range);
    } else {
      query.chosen.delete(facet.field);
    }
    changed();
  }
  const row = make("div", "range");
  row.append(inputs[0], make("span", "", "to"), inputs[1]);
  element.append(row);
  return () => {
    inputs.forEach((input, place) => { input.placeholder = String(facet.span[place]); });
    if (!query.chosen.has(facet.field)) for (const input of inputs) input.value = "";
  };
}

function clearFilters() {
  query.chosen.clear();
  query.words = [];
  byId("filter").value = "";
  changed();
}

function showOrders() {
  const fields = orderFields();
  if (fields.length === byId("order").options.length) return;
  byId("order").replaceChildren(...fields.map((field) => {
    const option = make("option", "", labelOf(field));
    option.value = field;
    option.selected = field === query.order;
    return option;
  }));
}
