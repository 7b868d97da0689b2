"use strict";
// Text reaches the page through textContent and attributes only, never as HTML.

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("data").textContent);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function fold(text) {
  return text.normalize("NFKC").toLowerCase();
}

const addressOf = (path) => path.split("/").map(encodeURIComponent).join("/");
const numeral = new Intl.NumberFormat("en");
const counted = (count) => numeral.format(count);
const plural = (count, noun) => `${counted(count)} ${noun}${count === 1 ? "" : "s"}`;

const LABEL = "meta."; // how the fields of labels begin

const labelOf = (field) =>
  field.startsWith(LABEL) ? field.slice(LABEL.length) : page.labels[field] ?? field;

// Values that say by themselves what they are values of.
const SPEAKING = new Set([
  "prompt", "negative", "sampler", "size", "model", "format", "device", "dtype", "init_image_name",
]);
const NAMES = { loras: "LoRA", embeddings: "embeddings", vae: "VAE", mask_name: "mask" };

// A value as it stands below a picture, and as it is searched.
function told(field, value) {
  if (field === "karras") return value ? "Karras" : "";
  const text = textOf(value);
  if (SPEAKING.has(field)) return text;
  return `${NAMES[field] ?? (field.startsWith(LABEL) ? labelOf(field) : field)} ${text}`;
}

function textOf(value) {
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}
