// Requests to the service that this page comes from. Addresses are relative: it may stand behind a path of a proxy's.

const TOKEN = "migrate-ckpt-token";

/** What the service answered instead of what was asked for. */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail ?? `The service answered with status ${status}.`);
    this.status = status;
    this.type = document.error_type ?? "";
    this.requestId = document.request_id ?? null;
  }
}

/** Somebody has cancelled it. */
export class Cancelled extends Error {}

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;
export const keepToken = (token) => sessionStorage.setItem(TOKEN, token);
export const forgetToken = () => sessionStorage.removeItem(TOKEN);

const authorization = () => {
  const token = sessionStorage.getItem(TOKEN);
  return token === null ? {} : { Authorization: `Bearer ${token}` };
};

const relative = (path) => path.replace(/^\//, "");

/** Return what the service answers, as a document or as a file. */
export async function request(path, { method = "GET", as = "json" } = {}) {
  const answer = await fetch(relative(path), { method, headers: authorization(), cache: "no-store" });
  if (!answer.ok) throw new Problem(answer.status, await documentOf(answer.text()));
  return as === "blob" ? answer.blob() : answer.json();
}

/**
 * Send a file, and return the answer. The browser reads it from the disk while it is sent.
 *
 * @param {string} path where to
 * @param {File} file the checkpoint
 * @param {{onSent: (part: number) => void, signal: AbortSignal, as?: "json" | "blob"}} options
 */
export function send(path, file, { onSent, signal, as = "json" }) {
  const form = new FormData();
  form.append("file", file);
  const sending = new XMLHttpRequest();
  sending.open("POST", relative(path));
  for (const [name, value] of Object.entries(authorization())) sending.setRequestHeader(name, value);
  sending.responseType = "blob";
  return new Promise((resolve, reject) => {
    const cancel = () => sending.abort();
    signal.addEventListener("abort", cancel, { once: true });
    sending.upload.onprogress = (event) => onSent(event.total ? event.loaded / event.total : 0);
    sending.onabort = () => reject(new Cancelled());
    sending.onerror = () => reject(new Error("The connection to the service broke."));
    sending.onload = async () => {
      signal.removeEventListener("abort", cancel);
      const { status, response } = sending;
      if (status < 200 || status > 299) return reject(new Problem(status, await documentOf(response.text())));
      if (as === "json") return resolve(JSON.parse(await response.text()));
      return resolve({ file: response, report: sending.getResponseHeader("Migration-Report") });
    };
    sending.send(form);
  });
}

async function documentOf(text) {
  try {
    return JSON.parse(await text);
  } catch {
    return {};
  }
}
