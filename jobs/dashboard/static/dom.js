// Elements and words. Text reaches the page through textContent and attributes only, never as HTML.

export const byId = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Set what differs only, so that nothing flickers and a screen reader says only what is new.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const count = (number) => number.toLocaleString("en");
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

export function speed(imagesPerS) {
  if (imagesPerS === null || imagesPerS === undefined) return "";
  const digits = imagesPerS < 0.1 ? 3 : imagesPerS < 10 ? 2 : 1;
  return `${imagesPerS.toFixed(digits)} images/s`;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export function ago(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

export function euros(amount) {
  if (amount === null || amount === undefined) return "";
  return `€${amount.toFixed(amount > 0 && amount < 1 ? 3 : 2)}`;
}

export const pathOf = (job) => `/jobs/${encodeURIComponent(job)}`;
export const pictureOf = ({ job, index }) => `${pathOf(job)}/picture/${index}`;
export const thumbnailOf = ({ job, index }) => `${pathOf(job)}/thumbnail/${index}`;

// The ledger's clock, which times of jobs and workers are of.
let ahead = 0;
export const setClock = (nowS) => { ahead = nowS - Date.now() / 1000; };
export const nowS = () => Date.now() / 1000 + ahead;
