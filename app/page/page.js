// What happens on the page: a checkpoint is chosen, looked at, and migrated.

import { Cancelled, Problem, forgetToken, hasToken, keepToken, send } from "./api.js";
import { byId, bytes, element, show } from "./dom.js";
import { followJobs, refresh } from "./jobs.js";
import { look } from "./look.js";
import { busy, migrate } from "./migrate.js";
import { chosenSet, showSets } from "./sets.js";

let chosen = null;
let running = null;

/** Do something with the service, and return whether it was done; what goes wrong is said on the page. */
async function attempt(work) {
  show("problem");
  show("result");
  try {
    await work();
    return true;
  } catch (error) {
    explain(error);
    return false;
  } finally {
    show("status");
  }
}

function explain(error) {
  if (error instanceof Cancelled) {
    show("result", element("p", { class: "soft" }, "Cancelled. Nothing has changed."));
    return;
  }
  if (error instanceof Problem && error.status === 401 && !askForToken()) return;
  const id = error.requestId ? element("p", { class: "hint" }, "request ", element("code", {}, error.requestId)) : null;
  show("problem", element("div", {}, element("p", { class: "bad" }, sentence(error.message)), id));
}

/** Show the field for a token, and return whether there was one, which is not good then. */
function askForToken() {
  const wasThere = hasToken();
  forgetToken();
  byId("access").hidden = false;
  byId("token").focus();
  return wasThere;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;

async function lookAt(file) {
  chosen = file;
  running?.abort();
  const controller = new AbortController();
  running = controller;
  show("look");
  await attempt(async () => {
    const title = `Looks at ${file.name} (${bytes(file.size)})`;
    const tell = busy(`${title} …`, controller);
    const plan = await send(`plan?changes=true&inspection=true&set=${encodeURIComponent(chosenSet())}`, file, {
      signal: controller.signal,
      onSent: (part) => tell(`${title} …`, part < 1 ? part : null),
    });
    if (chosen !== file) return;
    show("look", actionsFor(plan, file), look(plan, file));
  });
}

function actionsFor(plan, file) {
  if (!plan.to_run.length || plan.steps.some((step) => step.error)) return null;
  const button = element("button", {
    type: "button",
    class: "main",
    id: "migrate",
    onclick: async () => {
      button.disabled = true;
      const isDone = await attempt(() => migrate(file));
      button.disabled = false;
      button.hidden = isDone;
    },
  }, "Migrate it");
  return element("p", {}, button);
}

function takeFiles(files) {
  if (files.length > 1) {
    show("problem", element("div", {}, element("p", { class: "bad" }, "One checkpoint at a time, please.")));
  } else if (files.length === 1) {
    lookAt(files[0]);
  }
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
      drop.classList.add("over");
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
