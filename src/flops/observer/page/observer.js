// A project's page while it runs, and the list. The server renders; here parts are replaced when the event stream says that
// something was stored, and progress is drawn as it comes. Text only ever becomes text.

const page = document.getElementById("project");
const list = document.getElementById("projects");
const connection = document.getElementById("connection");
const RETRY = 1500;
const MOST = 30000;
const PATIENCE = 700; // a stream that has reached its end is no lost connection
const LEFT = 10000; // a page that nobody looks at gives its connection back: browsers have six of them for a host
const SLOW = 30000; // and is brought up to date so often, for the tab's title
const RENEW = 10000; // the list
const WIDTH = 1000;

// --- numbers and moments ---
let skew = 0; // this clock against the server's

function setSkew(server) { if (Number.isFinite(server)) skew = Date.now() - server; }

function now() { return (Date.now() - skew) / 1000; }

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
  const hours = Math.floor(minutes / 60);
  return hours < 24 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function ago(seconds) {
  for (const [size, word] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${word} ago`;
  }
  return "just now";
}

function write(place, text) { if (place.textContent !== text) place.textContent = text; }

function tick() {
  const moment = now();
  for (const place of document.querySelectorAll("[data-since]")) {
    const seconds = moment - Date.parse(place.dataset.since) / 1000;
    if (Number.isFinite(seconds)) write(place, span(Math.max(0, seconds)));
  }
  for (const place of document.querySelectorAll("time.ago")) {
    const seconds = moment - Date.parse(place.dateTime) / 1000;
    if (Number.isFinite(seconds)) write(place, ago(Math.max(0, seconds)));
  }
  if (page) grow(moment);
}

// The bars have one scale, which grows while something runs.
function grow(moment) {
  const bars = [...page.querySelectorAll("rect[data-begin]")].map((bar) => [bar, Number(bar.dataset.begin), Number(bar.dataset.end ?? NaN)]);
  if (!bars.some(([, , end]) => Number.isNaN(end))) return;
  const run = moment - Number(page.querySelector("[data-first]").dataset.first);
  const until = (begin, end) => (Number.isNaN(end) ? Math.max(begin, run) : end);
  const whole = Math.max(0.001, ...bars.map(([, begin, end]) => until(begin, end)));
  for (const [bar, begin, end] of bars) {
    bar.setAttribute("x", Math.min(WIDTH - 4, Math.round((begin / whole) * WIDTH)));
    bar.setAttribute("width", Math.max(4, Math.round(((until(begin, end) - begin) / whole) * WIDTH)));
  }
}

let telling = null;
let standing = ""; // comes back after what is told for a moment

function tell(text, milliseconds = 0) {
  clearTimeout(telling);
  if (!milliseconds) standing = text;
  write(connection, text);
  connection.hidden = !text;
  if (milliseconds) telling = setTimeout(() => tell(standing), milliseconds);
}

// --- parts ---
const drawn = new Map(); // what the server last said of each part, beside what was done to it here
const ABLE = "a,button,[tabindex],summary";

// What a part says, but for what goes with time: that is kept going here.
function sense(part) {
  const copy = part.cloneNode(true);
  for (const one of copy.querySelectorAll("[data-since], time.ago")) one.textContent = "";
  for (const one of copy.querySelectorAll("rect[data-begin]")) { one.removeAttribute("x"); one.removeAttribute("width"); }
  return copy.innerHTML;
}

function replacePart(part, root) {
  const name = part.dataset.part;
  const old = root.querySelector(`[data-part="${name}"]`);
  const text = sense(part);
  if (!old || drawn.get(name) === text) return;
  drawn.set(name, text);
  const open = [...old.querySelectorAll("details")].map((one) => one.open);
  const focused = old.contains(document.activeElement) ? [...old.querySelectorAll(ABLE)].indexOf(document.activeElement) : -1;
  old.replaceChildren(...part.childNodes);
  old.querySelectorAll("details").forEach((one, at) => { one.open = open[at] ?? one.open; });
  if (focused >= 0) [...old.querySelectorAll(ABLE)][focused]?.focus({ preventScroll: true });
}

function readable(text) { return new DOMParser().parseFromString(text, "text/html"); }

async function ask(address, options = {}) {
  const answer = await fetch(address, { redirect: "manual", headers: { Accept: "text/html" }, ...options });
  if (!options.method && answer.type === "opaqueredirect") location.reload(); // the session is over: the login is asked for
  if (answer.ok) setSkew(Date.parse(answer.headers.get("Date")) + 500);
  return answer;
}

// --- a project ---
let last = Number(page?.dataset.last ?? 0);
let pending = null;
let loading = false;
let again = false;
let settle = 150; // milliseconds in which events gather before the page is brought up to date; more where many look on

function replaceParts(fresh) {
  for (const part of fresh.querySelectorAll("[data-part]")) {
    if (part.dataset.part === "log") appendLines(part);
    else replacePart(part, page);
  }
  const title = page.querySelector("[data-title]")?.dataset.title;
  if (title) document.title = document.title.replace(/^.*(?= - )/s, () => title);
  const icon = page.querySelector("[data-icon]")?.dataset.icon;
  const shown = document.querySelector('link[rel="icon"]');
  if (icon && shown.getAttribute("href") !== icon) shown.href = icon;
  if (finished()) seen.clear();
  for (const event of seen.values()) drawProgress(event);
  showCopies();
  tick();
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
    const answer = await ask(`/projects/${page.dataset.id}/live?after=${last}`);
    settle = Number(answer.headers.get("Flops-Settle")) || settle;
    if (answer.ok) replaceParts(readable(await answer.text()));
  } catch { // the manager is away: the stream comes back, and with it the next refresh
    again = true;
    await new Promise((done) => setTimeout(done, RETRY));
  } finally {
    loading = false;
    if (again) { again = false; soon(); }
  }
}

function soon() {
  if (pending !== null) return;
  pending = setTimeout(() => { pending = null; refresh(); }, settle * (0.5 + Math.random()));
}

function finished() { return page.querySelector("[data-still]") !== null; }

// --- progress ---
const seen = new Map(); // the newest of each stage and platform: parts that are replaced get it back

function progressed(event) {
  seen.set([event.attempt, event.stage, event.platform].join("/"), event);
  drawProgress(event);
}

function drawProgress({ attempt, stage, platform, data }) {
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
  write(one.querySelector(".bytes"), [platform, shown].filter(Boolean).join(" "));
}

// --- the stream ---
const KINDS = ["started", "finished", "adjusted", "finding", "warning", "failed", "succeeded", "cancelled"];
let stream = null;
let failures = 0;
let coming = null;

function follow() {
  clearTimeout(coming);
  stream?.close();
  const mine = new EventSource(`${page.dataset.events}?after=${last}`);
  stream = mine;
  mine.addEventListener("open", () => { failures = 0; tell(""); soon(); });
  for (const kind of KINDS) mine.addEventListener(kind, soon);
  mine.addEventListener("progress", (message) => progressed(JSON.parse(message.data)));
  mine.addEventListener("error", () => {
    if (stream !== mine) return;
    soon();
    if (finished()) { leave(); return; }
    setTimeout(() => { if (stream === mine && !finished() && mine.readyState !== EventSource.OPEN) tell("reconnecting"); }, PATIENCE);
    if (mine.readyState !== EventSource.CLOSED) return; // else the browser comes back by itself
    failures += 1;
    const wait = Math.min(MOST, RETRY * 2 ** (failures - 1)) * (0.75 + Math.random() / 2);
    coming = setTimeout(() => { if (finished()) leave(); else follow(); }, wait);
  });
}

function leave() {
  clearTimeout(coming);
  stream?.close();
  stream = null;
  tell("");
}

let leaving = null;
let slow = null;

function looked() {
  clearTimeout(leaving);
  clearInterval(slow);
  if (finished()) return;
  if (document.hidden) {
    leaving = setTimeout(() => { leave(); slow = setInterval(() => { if (finished()) clearInterval(slow); else soon(); }, SLOW); }, LEFT);
  } else if (!stream) follow();
}

// --- what people press ---
function showCopies() {
  for (const button of document.querySelectorAll(".copy[hidden]")) button.hidden = false;
}

function copyOld(text) { // pages that come by plain HTTP have no clipboard
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("refused");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(button.dataset.copy);
    else { copyOld(button.dataset.copy); button.focus(); }
    tell("copied", 1500);
  } catch { tell("the browser refused to copy", 3000); }
});

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.method !== "post" || !page?.contains(form)) return;
  const button = form.querySelector("button");
  if (form.dataset.sure && form.dataset.asked === undefined) { // once more, and it is done
    event.preventDefault();
    const label = button.textContent;
    form.dataset.asked = "";
    button.textContent = form.dataset.sure;
    setTimeout(() => { delete form.dataset.asked; if (button.textContent === form.dataset.sure) button.textContent = label; }, 4000);
  } else if (form.dataset.sure) {
    event.preventDefault();
    button.disabled = true;
    try {
      const answer = await ask(form.action, { method: "POST" });
      const told = answer.type === "opaqueredirect" ? null : readable(await answer.text()).querySelector(".told");
      if (told) tell(told.textContent, 8000);
    } catch { tell("the manager does not answer; try again", 5000); button.disabled = false; }
    soon();
  } else setTimeout(() => { button.disabled = true; }); // one press, one project
});

// --- the list ---
async function renew() {
  if (document.hidden) return;
  try {
    const answer = await ask(location.href);
    if (!answer.ok) return;
    const fresh = readable(await answer.text());
    for (const part of fresh.querySelectorAll("[data-part]")) replacePart(part, document);
    showCopies();
    tick();
  } catch { /* the next time, perhaps */ }
}

setSkew(Number((page ?? list)?.dataset.now) * 1000);
for (const part of document.querySelectorAll("[data-part]")) drawn.set(part.dataset.part, sense(part));
showCopies();
if (page) {
  const log = page.querySelector("[data-lines]");
  const line = location.hash.startsWith("#line-");
  if (line && !page.querySelector(":target")) { // an earlier one
    if (page.querySelector("[data-whole]")) location.replace(`?log=all${location.hash}`);
  } else if (!line) log.scrollTop = log.scrollHeight;
  document.addEventListener("visibilitychange", looked);
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => { if (event.persisted) looked(); });
  looked();
}
if (list?.hasAttribute("data-renew")) setInterval(renew, RENEW);
if (page || list) setInterval(tick, 1000);
