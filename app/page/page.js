// What happens on the page: a checkpoint is chosen, looked at, and migrated.

import { keepToken, send } from "./api.js";
import { byId, bytes, element, show } from "./dom.js";
import { followJobs, refresh } from "./jobs.js";
import { look } from "./look.js";
import { busy, migrate } from "./migrate.js";
import { complain, explain } from "./notices.js";
import { chosenSet, showSets } from "./sets.js";

let chosen = null;
let looking = null;
let isMigrating = false;
let attempts = 0;

/** Do something with the service, and return whether it was done; what goes wrong is said on the page. */
async function attempt(work) {
  attempts += 1;
  const mine = attempts;
  show("problem");
  show("result");
  try {
    await work();
    return true;
  } catch (error) {
    // Of what another one has taken the place of nobody wants to hear.
    if (mine === attempts) explain(error);
    return false;
  } finally {
    if (mine === attempts) show("status");
  }
}

async function lookAt(file) {
  chosen = file;
  looking?.abort();
  const controller = new AbortController();
  looking = controller;
  show("look");
  await attempt(async () => {
    const title = `Looks at ${file.name} (${bytes(file.size)})`;
    const tell = busy(`${title} …`, controller);
    const plan = await send(`plan?changes=true&inspection=true&set=${encodeURIComponent(chosenSet())}`, file, {
      signal: controller.signal,
      onSent: (part) => tell(`${title} …`, part < 1 ? part : null),
    });
    if (looking === controller) show("look", actionsFor(plan, file), look(plan, file));
  });
}

function actionsFor(plan, file) {
  if (!plan.to_run.length || plan.steps.some((step) => step.error)) return null;
  const button = element("button", {
    type: "button",
    class: "main",
    id: "migrate",
    onclick: async () => {
      lock(true);
      button.disabled = true;
      const isDone = await attempt(() => migrate(file));
      button.disabled = false;
      button.hidden = isDone;
      lock(false);
    },
  }, "Migrate it");
  return element("p", {}, button);
}

/** Let nothing else be chosen while a checkpoint is migrated. */
function lock(isLocked) {
  isMigrating = isLocked;
  byId("file").disabled = isLocked;
  byId("set").disabled = isLocked;
}

function takeFiles(files) {
  if (isMigrating || !files.length) return;
  if (files.length > 1) complain("One checkpoint at a time, please.");
  else lookAt(files[0]);
}

function listen() {
  const drop = byId("drop");
  const file = byId("file");
  file.addEventListener("change", () => {
    takeFiles([...file.files]);
    // The same file again is a change as well.
    file.value = "";
  });
  byId("set").addEventListener("change", () => chosen && lookAt(chosen));
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", !isMigrating);
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    takeFiles([...event.dataTransfer.files]);
  });
  byId("access").addEventListener("submit", async (event) => {
    event.preventDefault();
    keepToken(byId("token").value.trim());
    byId("token").value = "";
    byId("access").hidden = true;
    await attempt(showSets);
    await refresh();
  });
}

listen();
await attempt(showSets);
await followJobs();
