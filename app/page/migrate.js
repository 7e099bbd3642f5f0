// Migrating a checkpoint: as a job where the service keeps jobs, and otherwise in one request.

import { Cancelled, request, send } from "./api.js";
import { downloadOf, migratedName, save } from "./downloads.js";
import { byId, bytes, counted, element, show } from "./dom.js";
import { hasJobs, progressOf, refresh } from "./jobs.js";
import { chosenSet } from "./sets.js";

const EVERY_MILLISECONDS = 500;

/**
 * Show that something is under way, with a button that ends it.
 *
 * @param {string} text what is done
 * @param {AbortController} controller what the button aborts
 * @returns {(text: string, part: number | null) => void} what shows how far it is
 */
export function busy(text, controller) {
  const words = element("span", {}, text);
  const bar = element("progress", { max: 1, "aria-label": "progress" });
  const cancel = element("button", { type: "button", onclick: () => controller.abort() }, "Cancel");
  show("status", element("p", { class: "row" }, words, cancel), bar);
  return (said, part) => {
    if (words.textContent !== said) words.textContent = said;
    if (part === null) bar.removeAttribute("value");
    else bar.value = part;
  };
}

/** Migrate a file with the set that is chosen, and offer what comes of it. */
export async function migrate(file) {
  const controller = new AbortController();
  const tell = busy("Sends the checkpoint …", controller);
  const options = { signal: controller.signal, onSent: (part) => tell(sentence(part), part < 1 ? part : null) };
  const query = `?set=${encodeURIComponent(chosenSet())}`;
  if (!hasJobs()) {
    const { file: made, report } = await send(`migrate${query}`, file, { ...options, as: "blob" });
    offer(JSON.parse(report), [
      element("button", { type: "button", class: "main", onclick: () => save(made, migratedName(file.name)) }, `Download the migrated checkpoint (${bytes(made.size)})`),
    ]);
    return;
  }
  const begun = await send(`jobs${query}`, file, options);
  const job = await ended(begun, controller, tell);
  await refresh();
  if (job.status === "cancelled") throw new Cancelled();
  if (job.problem) throw new Error(job.problem.detail);
  offer(job.report, [downloadOf(job, `Download the migrated checkpoint (${bytes(job.result.size)})`, "main")]);
}

const sentence = (part) => (part < 1 ? "Sends the checkpoint …" : "Waits for the answer …");

async function ended(begun, controller, tell) {
  let job = begun;
  let isCancelled = false;
  while (!job.ended) {
    const { text, part } = progressOf(job);
    tell(text, part);
    await new Promise((resolve) => setTimeout(resolve, EVERY_MILLISECONDS));
    if (controller.signal.aborted && !isCancelled) {
      isCancelled = true;
      job = await request(job.url, { method: "DELETE" });
    } else {
      job = await request(job.url);
    }
  }
  return job;
}

/** Show the report of a run, and how to have what it made. */
function offer(report, actions) {
  const ran = report.ran;
  show(
    "result",
    element("h3", { tabindex: "-1", id: "done" }, ran.length ? `Done: ${counted(ran.length, "migration")} ran` : "Nothing ran: it is up to date"),
    element("p", { class: "row" }, actions),
    ran.length ? element("p", {}, ran.map((name, i) => [i ? ", " : "", element("code", {}, name)]).flat()) : null,
    report.warnings.map((text) => element("p", { class: "warn" }, text)),
    report.not_applicable.length ? element("p", { class: "soft" }, `Not applicable: ${report.not_applicable.join(", ")}`) : null,
    element("details", {}, element("summary", {}, "The whole report"), element("pre", { class: "scroll", tabindex: "0" }, JSON.stringify(report, null, 2))),
  );
  byId("done").focus();
}
