// One picture, large, with its facts. It steps through the grid that it was opened from.

import { byId, make, pictureOf } from "./dom.js";

const LABELS = {
  job: "Job", index: "Number", seed: "Seed", model: "Model", sampler: "Sampler", steps: "Steps",
  guidance: "Guidance", strength: "Strength", size: "Size", finished: "Finished",
};

let shown = null; // the item of the grid

export function openViewer(item) {
  shown = item;
  const picture = item.picture;
  byId("picture").src = pictureOf(picture);
  byId("picture").alt = picture.prompt ?? `Picture ${picture.index}`;
  byId("full").href = pictureOf(picture);
  byId("prompt").textContent = picture.prompt ?? "";
  byId("negative").textContent = picture.negative ?? "";
  byId("position").textContent = `Picture ${picture.index}`;
  const size = picture.width ? `${picture.width}×${picture.height}` : undefined;
  const values = { ...picture, size };
  byId("parameters").replaceChildren(...Object.entries(LABELS)
    .filter(([key]) => values[key] !== undefined && values[key] !== null)
    .flatMap(([key, label]) => [make("dt", "", label), make("dd", "", String(values[key]))]));
  showNeighbours();
  if (!byId("viewer").open) {
    byId("viewer").showModal();
    byId("viewer").focus(); // rather than its first button
  }
}

function showNeighbours() {
  byId("previous").disabled = !shown.previousElementSibling;
  byId("next").disabled = !shown.nextElementSibling;
}

function step(towards) {
  const item = shown?.[towards];
  if (item) openViewer(item);
}

byId("viewer").addEventListener("close", () => {
  const link = shown?.querySelector("a");
  link?.focus({ preventScroll: true });
  link?.scrollIntoView({ block: "nearest" });
  shown = null;
});
byId("viewer").addEventListener("click", (event) => {
  if (event.target === byId("viewer")) byId("viewer").close(); // the backdrop
});
byId("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step("previousElementSibling");
  if (event.key === "ArrowRight") step("nextElementSibling");
});
byId("close").addEventListener("click", () => byId("viewer").close());
byId("previous").addEventListener("click", () => step("previousElementSibling"));
byId("next").addEventListener("click", () => step("nextElementSibling"));
