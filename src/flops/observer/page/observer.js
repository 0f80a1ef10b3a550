// A project's page while it runs. The server renders; here its parts are replaced when the event stream says that something
// was stored, and progress is drawn as it comes. Text only ever becomes text.

const page = document.getElementById("project");
const connection = document.getElementById("connection");
const SETTLE = 200; // milliseconds in which events gather before the page is brought up to date
const RETRY = 1500;
const PATIENCE = 700; // a stream that has reached its end is no lost connection

let last = Number(page.dataset.last);
let pending = null;
let loading = false;
let again = false;

function units(count) {
  const names = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let at = 0;
  while (Math.abs(value) >= 1000 && at < names.length - 1) { value /= 1000; at += 1; }
  return at ? `${value.toFixed(1)} ${names[at]}` : `${value.toFixed(0)} B`;
}

function span(seconds) {
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function tell(text) {
  if (connection.textContent !== text) connection.textContent = text;
  connection.hidden = !text;
}

// --- the parts ---
function replaceParts(fresh) {
  for (const part of fresh.querySelectorAll("[data-part]")) {
    if (part.dataset.part === "log") { appendLines(part); continue; }
    const old = page.querySelector(`[data-part="${part.dataset.part}"]`);
    if (!old || old.dataset.text === part.innerHTML) continue;
    const open = [...old.querySelectorAll("details")].map((one) => one.open);
    const text = part.innerHTML;
    const focused = old.contains(document.activeElement) ? [...old.querySelectorAll("a,button,[tabindex],summary")].indexOf(document.activeElement) : -1;
    old.replaceChildren(...part.childNodes);
    old.dataset.text = text;
    old.querySelectorAll("details").forEach((one, at) => { one.open = open[at] ?? one.open; });
    if (focused >= 0) [...old.querySelectorAll("a,button,[tabindex],summary")][focused]?.focus();
  }
  showCopies();
}

function appendLines(part) {
  const log = page.querySelector("[data-lines]");
  const following = log.scrollTop + log.clientHeight >= log.scrollHeight - 40;
  for (const line of [...part.querySelectorAll("[data-sequence]")]) {
    const sequence = Number(line.dataset.sequence);
    if (sequence <= last) continue;
    log.append(line);
    last = sequence;
  }
  if (following) log.scrollTop = log.scrollHeight;
}

async function refresh() {
  if (loading) { again = true; return; }
  loading = true;
  try {
    const answer = await fetch(`/projects/${page.dataset.id}/live?after=${last}`, { redirect: "manual" });
    if (answer.ok) replaceParts(new DOMParser().parseFromString(await answer.text(), "text/html"));
    else if (answer.type === "opaqueredirect") location.reload(); // the session is over: the login is asked for
  } catch { // the manager is away: the stream comes back, and with it the next refresh
    again = true;
    await new Promise((done) => setTimeout(done, RETRY));
  } finally {
    loading = false;
    if (again) { again = false; soon(); }
  }
}

function soon() {
  if (pending === null) pending = setTimeout(() => { pending = null; refresh(); }, SETTLE);
}

// --- progress ---
function progressed(event) {
  const { attempt, stage, platform, data } = event;
  const row = page.querySelector(`[data-stage="${CSS.escape(`${attempt}/${stage}`)}"]`);
  if (!row || !row.classList.contains("running") || typeof data?.done !== "number") return;
  const place = row.querySelector(".progress");
  let one = [...place.children].find((child) => child.dataset.platform === (platform ?? ""));
  if (!one) {
    one = document.createElement("span");
    one.dataset.platform = platform ?? "";
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", [stage, platform].filter(Boolean).join(" "));
    const bytes = document.createElement("span");
    bytes.className = "bytes";
    one.append(bar, " ", bytes);
    place.append(one);
  }
  const bar = one.querySelector("progress");
  const known = typeof data.total === "number" && data.total > 0;
  if (known) { bar.max = data.total; bar.value = Math.min(data.done, data.total); }
  const shown = known ? `${units(data.done)} of ${units(data.total)}` : units(data.done);
  one.querySelector(".bytes").textContent = [platform, shown].filter(Boolean).join(" ");
}

// --- the stream ---
const KINDS = ["started", "finished", "adjusted", "finding", "warning", "failed", "succeeded", "cancelled"];
let stream = null;

function follow() {
  stream = new EventSource(`${page.dataset.events}?after=${last}`);
  stream.addEventListener("open", () => { tell(""); soon(); });
  for (const kind of KINDS) stream.addEventListener(kind, soon);
  stream.addEventListener("progress", (message) => progressed(JSON.parse(message.data)));
  stream.addEventListener("error", () => {
    soon();
    if (finished()) { stream.close(); tell(""); return; }
    setTimeout(() => { if (!finished() && stream.readyState !== EventSource.OPEN) tell("reconnecting"); }, PATIENCE);
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => { if (!finished()) follow(); }, RETRY);
  });
}

function finished() {
  return page.hasAttribute("data-still") || page.querySelector("[data-still]") !== null;
}

setInterval(() => {
  for (const place of page.querySelectorAll("[data-since]")) {
    const seconds = (Date.now() - Date.parse(place.dataset.since)) / 1000;
    if (Number.isFinite(seconds)) place.textContent = span(Math.max(0, seconds));
  }
}, 1000);

// --- copying ---
function showCopies() {
  if (!navigator.clipboard) return;
  for (const button of document.querySelectorAll(".copy[hidden]")) button.hidden = false;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  try { await navigator.clipboard.writeText(button.dataset.copy); tell("copied"); } catch { tell("copying was refused"); }
  setTimeout(() => tell(""), 1500);
});

showCopies();
const log = page.querySelector("[data-lines]");
log.scrollTop = log.scrollHeight;
if (!page.hasAttribute("data-still")) follow();
