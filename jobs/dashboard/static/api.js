// What the page asks its server. The token comes behind the # of the address, which no server sees.

const KEPT = "sdbatch-token";
const HEADER = "x-sdbatch-token";

export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  sessionStorage.setItem(KEPT, given);
  history.replaceState(null, "", location.pathname + location.search);
}

const token = () => sessionStorage.getItem(KEPT);
export const mayChange = () => Boolean(token());

async function ask(path, options = {}) {
  const headers = token() ? { [HEADER]: token() } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("the page's server does not answer");
  }
  if (answer.status === 204) return null;
  const values = await answer.json().catch(() => ({}));
  if (answer.ok) return values;
  const error = new Error(values.error || `the server answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

const query = (values) => new URLSearchParams(values).toString();
const jobPath = (job) => `/api/jobs/${encodeURIComponent(job)}`;

export const getNow = () => ask("/api/now");
export const getJobs = (search, from) => ask(`/api/jobs?${query({ search, from })}`);
export const getJob = (job) => ask(jobPath(job));
export const getFacts = (job, indices) =>
  ask(`${jobPath(job)}/pictures?${query({ images: indices.join(",") })}`);
export const getBefore = (job, before) =>
  ask(`${jobPath(job)}/pictures?${query(before === null ? {} : { before })}`);
export const change = (job, name) => ask(`${jobPath(job)}/${name}`, { method: "POST" });

// Images and events are asked for without the token: a cookie lets them through where they need it.
export async function beginSession() {
  if (mayChange()) await ask("/api/session", { method: "POST" });
}
