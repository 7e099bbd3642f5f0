// Files on their way to the disk of whoever looks at this page.

import { hasToken, request } from "./api.js";
import { element } from "./dom.js";
import { explain } from "./notices.js";

/** Have the browser save a file that is here already. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Return what fetches the result of a job: a link, or where a token is needed, which no link carries, a button. */
export function downloadOf(job, label = "Download", style = "") {
  const name = migratedName(job.filename);
  if (!hasToken()) return element("a", { href: job.result.url.replace(/^\//, ""), download: name, class: style }, label);
  const button = element("button", {
    type: "button",
    class: style,
    onclick: async () => {
      button.disabled = true;
      try {
        save(await request(job.result.url, { as: "blob" }), name);
      } catch (error) {
        explain(error);
      } finally {
        button.disabled = false;
      }
    },
  }, label);
  return button;
}

/** Return a name for the migrated file. */
export function migratedName(name) {
  if (!name) return "migrated.ckpt";
  const dot = name.lastIndexOf(".");
  return dot > 0 ? `${name.slice(0, dot)}.migrated${name.slice(dot)}` : `${name}.migrated`;
}
