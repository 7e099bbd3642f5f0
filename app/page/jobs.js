// The jobs of the service, as they stand now.

import { Problem, request } from "./api.js";
import { downloadOf } from "./downloads.js";
import { byId, bytes, element, show } from "./dom.js";
import { explain } from "./notices.js";

const EVERY_MILLISECONDS = 2000;
const STYLES = { queued: "soft", running: "warn", succeeded: "good", failed: "bad", cancelled: "soft" };
let keepsJobs = null;
let said = "";

/** Return whether the service keeps jobs, as far as is known. */
export const hasJobs = () => keepsJobs === true;

/** Show the jobs now, and again and again as long as the page is looked at. */
export async function followJobs() {
  while (keepsJobs !== false) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MILLISECONDS));
  }
}

/** Show the jobs as they are now. */
export async function refresh() {
  try {
    const { jobs } = await request("jobs?limit=20");
    keepsJobs = true;
    byId("jobs").hidden = false;
    const text = JSON.stringify(jobs);
    // What has not changed keeps the focus, and what is selected in it.
    if (text !== said) show("jobs-list", jobs.length ? tableOf(jobs) : element("p", { class: "hint" }, "There are none yet."));
    said = text;
  } catch (error) {
    if (error instanceof Problem && error.type === "no_jobs") keepsJobs = false;
    if (!(error instanceof Problem) || error.status !== 401) return;
    byId("jobs").hidden = true;
  }
}

/** Return how far a job is, in words, and as a part of 1 where that is known. */
export function progressOf(job) {
  if (job.status === "queued") {
    const before = job.queue_position ? `, ${job.queue_position} before it` : "";
    return { text: `Waits for its turn${before}.`, part: null };
  }
  const { step, migration, done_bytes: done, total_bytes: total } = job.progress ?? { step: "fetch" };
  const words = { fetch: "Takes the checkpoint in", migrate: "Migrates", store: "Writes the result" };
  const which = migration ? `: ${migration}` : "";
  const part = step !== "migrate" && total ? done / total : null;
  return { text: `${words[step] ?? step}${which} …`, part };
}

function tableOf(jobs) {
  const headings = ["checkpoint", "status", "when", ""].map((text) => element("th", { scope: "col" }, text));
  const head = element("thead", {}, element("tr", {}, headings));
  const table = element("table", {}, head, element("tbody", {}, jobs.map(rowOf)));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "recent jobs" }, table);
}

function rowOf(job) {
  const name = job.filename ?? job.source ?? job.id;
  const size = job.size === null ? "" : ` ${bytes(job.size)}`;
  return element(
    "tr",
    {},
    element("td", {}, element("span", { class: "key" }, name), element("span", { class: "soft" }, size)),
    element("td", {}, element("span", { class: `badge ${STYLES[job.status]}` }, job.status), " ", detailOf(job)),
    element("td", {}, element("time", { datetime: job.created }, new Date(job.created).toLocaleString())),
    element("td", {}, actionOf(job)),
  );
}

function detailOf(job) {
  if (job.problem) return element("span", { class: "soft" }, job.problem.detail);
  if (job.status === "running" || job.status === "queued") return element("span", { class: "soft" }, progressOf(job).text);
  const ran = job.report?.ran.length ?? 0;
  return element("span", { class: "soft" }, job.report ? `${ran} ran` : "");
}

function actionOf(job) {
  if (job.result) return downloadOf(job);
  if (job.ended || job.status === "succeeded") return "";
  return element("button", {
    type: "button",
    onclick: async (event) => {
      event.target.disabled = true;
      await request(job.url, { method: "DELETE" }).catch(explain);
      await refresh();
    },
  }, "Cancel");
}
