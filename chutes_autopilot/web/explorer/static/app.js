// The page works without this module: every link and form is answered by the server. It only saves the reload, keeps
// focus and scroll where they are, draws the charts, and asks again when something has moved.

const root = document.documentElement;
root.classList.add("js");
const themes = window.matchMedia("(prefers-color-scheme: dark)");

function stored(key, value) {
  try {
    return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value);
  } catch {
    return null; // storage may be forbidden
  }
}

const theme = () => root.dataset.theme ?? (themes.matches ? "dark" : "light");
const chosenTheme = stored("theme");
if (chosenTheme === "dark" || chosenTheme === "light") root.dataset.theme = chosenTheme;

const byId = (id) => document.getElementById(id);
const say = (text) => { byId("status").textContent = text; };

// ---- taking a new state of the page into the one that is shown -----------------------------------------------

const key = (node) => (node.nodeType === 1 && node.id) || null;
const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);

function takeAttributes(shown, wanted) {
  for (const { name } of [...shown.attributes]) {
    const kept = (name === "open" && shown.nodeName === "DETAILS") || name === "aria-busy";
    if (!kept && !wanted.hasAttribute(name)) shown.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  if (shown.nodeName === "INPUT" && shown !== document.activeElement) {
    shown.checked = wanted.hasAttribute("checked");
    if (shown.type !== "checkbox") shown.value = wanted.getAttribute("value") ?? "";
  }
  if (shown.nodeName === "OPTION") shown.selected = wanted.hasAttribute("selected");
}

function take(shown, wanted) {
  if (shown.nodeType !== 1) {
    if (shown.nodeValue !== wanted.nodeValue) shown.nodeValue = wanted.nodeValue;
    return;
  }
  if (shown.isEqualNode(wanted) && shown.nodeName !== "FORM") return;
  if (shown.dataset.drawn) { // a chart: its own module draws it
    if (shown.dataset.chart === wanted.dataset.chart) return;
  }
  takeAttributes(shown, wanted);
  takeChildren(shown, wanted);
}

function takeChildren(shown, wanted) {
  const known = new Map();
  for (const child of shown.childNodes) if (key(child)) known.set(key(child), child);
  let place = shown.firstChild;
  for (const child of [...wanted.childNodes]) {
    let match = key(child) ? known.get(key(child)) : place;
    if (match && !alike(match, child)) match = null;
    if (match && !key(child) && key(match)) match = null;
    if (!match) {
      shown.insertBefore(document.importNode(child, true), place);
      continue;
    }
    if (match === place) place = place.nextSibling;
    else shown.insertBefore(match, place);
    take(match, child);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

// What is new comes in above: whoever has scrolled down goes on with the line that was at the top.
function readAt(list) {
  const place = (item) => item.offsetTop - list.scrollTop;
  const item = list.scrollTop > 0 && [...list.children].find((each) => place(each) + each.offsetHeight > list.offsetTop);
  const before = item && place(item);
  return () => { if (item && item.isConnected) list.scrollTop = item.offsetTop - before; };
}

function keepingFocus(change) {
  const focused = document.activeElement;
  const id = focused?.id;
  const scrolls = [...document.querySelectorAll(".scroll, .panel, .chips, .wide")].map((e) => [e, e.scrollTop, e.scrollLeft]);
  const lists = [...document.querySelectorAll(".beside ol")].map(readAt);
  change();
  for (const goBack of lists) goBack();
  for (const [element, top, left] of scrolls) {
    if (element.isConnected && element.scrollTop !== top) element.scrollTop = top;
    if (element.isConnected && element.scrollLeft !== left) element.scrollLeft = left;
  }
  if (focused && focused !== document.body && document.activeElement !== focused) {
    (focused.isConnected ? focused : id && byId(id))?.focus({ preventScroll: true });
  }
}

// ---- asking the server -----------------------------------------------------------------------------------------

let asking = null;

async function read(address, signal) {
  const answer = await fetch(address, { signal, headers: { Accept: "text/html" } });
  const text = await answer.text();
  if (!answer.headers.get("Content-Type")?.startsWith("text/html")) throw new Error(`HTTP ${answer.status}`);
  if (!text.includes('<main id="main"')) throw new Error(`HTTP ${answer.status}`); // there is no explorer any more, or not yet
  return new DOMParser().parseFromString(text, "text/html");
}

// Going back leads to what was asked for before: an entry for each address, and one alone for a burst of typing, which
// its first letter makes and the others rewrite.
let bursting = false;
function enter(address, typed) {
  const wanted = new URL(address, location.href).href;
  const known = wanted === location.href;
  if (bursting && typed) history.replaceState(null, "", wanted);
  else if (!known) history.pushState(null, "", wanted);
  bursting = typed && (bursting || !known);
}

async function show(address, { push = true, typed = false, quiet = false } = {}) {
  const main = byId("main");
  if (quiet && asking) return; // what the reader asked for comes first
  asking?.abort();
  const mine = (asking = new AbortController());
  if (!quiet) main.setAttribute("aria-busy", "true");
  try {
    const page = await read(address, mine.signal);
    if (push) enter(address, typed);
    keepingFocus(() => {
      document.title = page.title;
      takeAttributes(document.body, page.body);
      take(document.querySelector(".top"), page.querySelector(".top"));
      take(main, page.getElementById("main"));
    });
    if (!quiet) say(page.getElementById("status").textContent);
    failures = 0;
    arrived();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!quiet) return location.assign(address);
    failures += 1;
    askAgain();
  } finally {
    if (asking === mine) {
      asking = null;
      main.removeAttribute("aria-busy");
    }
  }
}

let waiting = 0;
let failures = 0;

// A page that says that something is not there yet asks again by itself, and so does one that got no answer: each time
// after twice as long, a minute at most, and not all readers at once.
function askAgain() {
  clearTimeout(waiting);
  if (!failures && !document.querySelector(".state.loading, .state.down")) return;
  waiting = setTimeout(() => {
    if (!paused || !document.querySelector("[data-stream]")) show(location.href, { push: false, quiet: true });
  }, Math.min(3000 * 2 ** failures, 60000) * (1 + Math.random() / 4));
}

// Values move, the order does not: rows jump only when the reader asks for it.
async function refreshValues() {
  const address = location.href;
  if (document.hidden || asking) return;
  let page;
  try {
    page = await read(address);
  } catch {
    return;
  }
  if (asking || address !== location.href) return;
  keepingFocus(() => {
    take(byId("freshness"), page.getElementById("freshness"));
    for (const row of page.querySelectorAll("#rows > tr")) {
      const shown = byId(row.id);
      if (shown) take(shown, row);
    }
  });
}

// What a form asks for, short enough to be shared: nothing empty, lists joined, the usual columns left out.
function addressOf(form, submitter) {
  const asked = new URL(form.getAttribute("action") || location.pathname, location.origin);
  const values = new Map();
  for (const [name, value] of new FormData(form, submitter)) {
    if (value !== "") values.set(name, [...(values.get(name) ?? []), value]);
  }
  const boxes = [...form.elements].filter((e) => e.name === "cols");
  if (boxes.length && boxes.every((box) => box.checked === "usual" in box.dataset)) values.delete("cols");
  if (values.get("sort")?.[0] === "-requests") values.delete("sort");
  if (values.has("compare")) values.delete("model");
  values.delete("offset");
  asked.search = [...values].map(([name, given]) => `${name}=${given.map(encodeURIComponent).join(",")}`).join("&");
  return asked.pathname + asked.search;
}

const plain = (event) => !event.defaultPrevented && event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (link && plain(event) && link.origin === location.origin && !link.download && link.target !== "_blank") {
    const here = ["/", "/live", "/merge", "/changes"];
    if (here.includes(link.pathname) && !link.getAttribute("href").startsWith("#")) {
      event.preventDefault();
      follow(link);
      return;
    }
  }
  const copy = event.target.closest?.(".copy");
  if (copy) copyFrom(copy);
  const span = event.target.closest?.("[data-span]");
  if (span) chooseSpan(span);
  if (event.target.closest?.("#theme")) switchTheme();
  if (event.target.closest?.("#pause")) pause();
  for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});

async function follow(link) {
  const opens = link.classList.contains("name") ? link.id : null;
  const closes = link.id === "close" ? opened : null;
  if (opens) opened = { id: opens, scroll: window.scrollY };
  await show(link.getAttribute("href") || location.href);
  if (opens) {
    byId("panel")?.focus({ preventScroll: true });
    window.scrollTo(0, 0); // on a narrow screen the panel takes the list's place
  }
  if (closes) {
    byId(closes.id)?.focus({ preventScroll: true });
    window.scrollTo(0, closes.scroll);
  }
}
let opened = null;

document.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  show(addressOf(event.target, event.submitter), { typed: bursting });
});

let typing = 0;
const isTyped = (field) => field.type === "search" || field.type === "number";
document.addEventListener("input", (event) => {
  const field = event.target;
  if (!field.form) return;
  clearTimeout(typing);
  const typed = isTyped(field);
  typing = setTimeout(() => show(addressOf(field.form, field.form.querySelector("#apply")), { typed }), typed ? 180 : 0);
});
document.addEventListener("focusout", () => { bursting = false; });

window.addEventListener("popstate", () => {
  clearTimeout(typing);
  bursting = false;
  const field = document.activeElement;
  show(location.href, { push: false }).then(() => {
    if (isTyped(field)) field.value = field.getAttribute("value") ?? "";
  });
});

document.addEventListener("keydown", (event) => {
  const typingIn = event.target.matches?.("input:not([type=checkbox]), select, textarea");
  if (event.key === "/" && !typingIn && !event.ctrlKey && !event.metaKey && byId("q")) {
    event.preventDefault();
    byId("q").select();
  }
  if (event.key !== "Escape") return;
  const menu = document.querySelector(".menu[open]");
  if (menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
  } else if (byId("close") && !typingIn) byId("close").click();
});

// ---- small things ------------------------------------------------------------------------------------------------

function switchTheme() {
  root.dataset.theme = theme() === "dark" ? "light" : "dark";
  stored("theme", root.dataset.theme);
  nameTheme();
  drawCharts(true);
}

function nameTheme() {
  const button = byId("theme");
  const other = theme() === "dark" ? "light" : "dark";
  button.textContent = other === "dark" ? "Dark" : "Light";
  button.setAttribute("aria-label", `Switch to the ${other} theme`);
}

async function copyFrom(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    const field = document.createElement("textarea"); // no clipboard outside of https and localhost
    field.value = button.dataset.copy;
    field.className = "sr";
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
  say("Copied");
}

function ownOrigin() {
  for (const snippet of document.querySelectorAll(".snippet[data-origin]")) {
    const there = snippet.dataset.origin;
    if (there === location.origin) continue;
    const code = snippet.querySelector("code");
    const copy = snippet.querySelector(".copy");
    code.textContent = code.textContent.replaceAll(there, location.origin);
    copy.dataset.copy = copy.dataset.copy.replaceAll(there, location.origin);
  }
}

const started = new WeakMap();
function tick() {
  for (const element of document.querySelectorAll("[data-age]")) {
    let known = started.get(element);
    if (known?.age !== element.dataset.age) started.set(element, (known = { age: element.dataset.age, at: Date.now() }));
    const text = span(Number(known.age) + (Date.now() - known.at) / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
}

function span(seconds) {
  for (const [limit, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= limit) return `${Math.round(seconds / limit)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

// ---- charts ------------------------------------------------------------------------------------------------------

let plotting = null;
function plotter() {
  plotting ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = root.dataset.plotScript;
    script.onload = () => done(window.uPlot);
    script.onerror = failed;
    document.head.append(script);
  });
  return plotting;
}

let plots = [];
let drawnFor = null;
let chosenSpan = "24h";

function chooseSpan(button) {
  chosenSpan = button.dataset.span;
  drawCharts(true);
}

const colour = (name) => {
  const probe = document.createElement("i");
  probe.className = "sr";
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
};

async function drawCharts(again = false) {
  const charts = document.querySelector(".charts[data-history]");
  const wanted = charts && `${charts.dataset.history} ${chosenSpan}`;
  if (wanted === drawnFor && !again) return;
  drawnFor = wanted;
  for (const plot of plots) plot.destroy();
  plots = [];
  if (!charts) return;
  for (const button of charts.querySelectorAll("[data-span]")) button.setAttribute("aria-pressed", String(button.dataset.span === chosenSpan));
  let data, uPlot;
  try {
    const answer = await fetch(`${charts.dataset.history}?span=${chosenSpan}&measures=utilization,active_instances,price_input,price_output`, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    [data, uPlot] = [await answer.json(), await plotter()];
  } catch {
    return noHistory(charts, "The history cannot be read now.");
  }
  if (drawnFor !== wanted || !charts.isConnected) return;
  if (!data.at.length) return noHistory(charts, "No history yet; it is recorded every minute.");
  const { times, column } = withGaps(data);
  const lines = {
    utilization: [["utilization", "--accent", column("utilization")]],
    instances: [["instances", "--hot", column("active_instances")]],
    price: [["input", "--accent", column("price_input")], ["output", "--tee", column("price_output")]],
  };
  for (const [name, series] of Object.entries(lines)) {
    const place = charts.querySelector(`[data-chart="${name}"]`);
    if (place) plots.push(plot(uPlot, place, name, times, series));
  }
}

// Where nothing was recorded for a while the line must break: a moment of nulls stands for the gap.
function withGaps({ at, series, resolution }) {
  const longest = resolution === "hour" ? 7200 : 300;
  const places = [];
  at.forEach((moment, place) => {
    if (place && moment - at[place - 1] > longest) places.push(null);
    places.push(place);
  });
  return {
    times: places.map((place, n) => (place === null ? at[places[n - 1]] + 1 : at[place])),
    column: (name) => places.map((place) => (place === null ? null : series[name]?.mean[place] ?? null)),
  };
}

function noHistory(charts, text) {
  for (const place of charts.querySelectorAll(".plot")) {
    if (place.querySelector("svg")) continue;
    place.dataset.drawn = "true";
    place.replaceChildren(Object.assign(document.createElement("span"), { className: "dim", textContent: text }));
  }
}

const DAY = 86400;
const MINUTES = [1, 2, 5, 10, 15, 30, 60, 120, 180, 240, 360, 720].map((minutes) => 60 * minutes);
const DAYS = [1, 2, 5, 10, 20, 30].map((days) => DAY * days);

function plot(uPlot, place, name, times, lines) {
  place.dataset.drawn = "true";
  place.replaceChildren();
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const share = name === "utilization";
  const figure = share ? (v) => `${Math.round(v * 100)}%` : name === "price" ? (v) => v.toFixed(2) : (v) => String(Math.round(v));
  const top = Math.max(...lines.flatMap(([, , values]) => values).filter((v) => v !== null), 0);
  const long = times.at(-1) - times[0] > 2 * DAY;
  const moment = new Intl.DateTimeFormat("en-GB", long ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit" });
  const exact = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  const readout = place.parentNode.querySelector(".readout");
  const tell = ({ cursor: { idx } }) => {
    const known = idx == null ? [] : lines.map(([, , values]) => values[idx]).filter((v) => v !== null);
    readout.textContent = known.length ? `${exact.format(times[idx] * 1000)}: ${known.map(figure).join(" / ")}` : "";
  };
  return new uPlot({
    width: place.clientWidth,
    height: place.clientHeight,
    padding: [6, 18, 0, 0],
    cursor: { y: false, drag: { x: false, y: false } },
    legend: { show: false },
    hooks: { setCursor: [tell] },
    scales: { x: { range: (_, from, to) => [Math.min(from, to - 600), to] }, y: { range: [0, share ? 1 : top * 1.15 || 1] } },
    axes: [
      { ...axis, size: 22, space: 60, incrs: long ? DAYS : MINUTES, values: (_, marks) => marks.map((at) => moment.format(at * 1000)) },
      { ...axis, size: 44, space: 24, values: (_, marks) => marks.map(figure) },
    ],
    series: [{}, ...lines.map(([label, stroke]) => ({
      label, stroke: colour(stroke), width: 1.5, points: { show: false }, spanGaps: false,
      fill: name === "price" ? undefined : colour(stroke).replace("rgb(", "rgba(").replace(")", ", .13)"),
      paths: share ? undefined : uPlot.paths.stepped({ align: 1 }),
    }))],
  }, [times, ...lines.map(([, , values]) => values)], place);
}

window.addEventListener("resize", () => {
  for (const plot of plots) plot.setSize({ width: plot.root.parentNode.clientWidth, height: plot.root.parentNode.clientHeight });
});

// ---- live ----------------------------------------------------------------------------------------------------------

let stream = null;
let paused = false;
let due = 0;
let again = false;

function pause() {
  paused = !paused;
  streamState();
  if (!paused) soon(0);
}

function streamState() {
  const text = byId("stream-state");
  if (!text || !stream) return;
  const button = byId("pause");
  button.textContent = paused ? "Resume" : "Pause";
  button.setAttribute("aria-pressed", String(paused));
  const open = stream.readyState === EventSource.OPEN;
  const closed = stream.readyState === EventSource.CLOSED;
  text.textContent = paused ? "paused" : open ? "live" : closed ? "no updates: too many readers, or the service stops" : "connecting";
  byId("stream-dot").className = `dot ${open && !paused ? "fresh" : closed ? "stale" : "loading"}`;
}

// A browser comes again by itself after a cut, but not after a refusal.
function lost() {
  streamState();
  if (stream?.readyState !== EventSource.CLOSED) return;
  setTimeout(() => {
    if (stream?.readyState === EventSource.CLOSED) {
      stream = null;
      connect();
    }
  }, 30000);
}

// Many readers see one event at the same moment: each asks a little later, and never more than once in two seconds.
function soon(wait = 100 + Math.random() * 400) {
  if (paused || document.hidden) return;
  again = due !== 0;
  if (again) return;
  due = setTimeout(async () => {
    await show(location.href, { push: false, quiet: true });
    due = setTimeout(() => {
      due = 0;
      if (again) soon();
    }, 2000);
  }, wait);
}

function connect() {
  const live = document.querySelector("[data-stream]");
  if (!live || !window.EventSource) {
    stream?.close();
    stream = null;
    return;
  }
  if (!stream) {
    stream = new EventSource(live.dataset.stream);
    stream.onopen = streamState;
    stream.onerror = lost;
    for (const name of ["ranking", "measured", "picks", "failovers", "freshness"]) stream.addEventListener(name, () => soon());
  }
  streamState();
}

// ---- whenever a page is there ----------------------------------------------------------------------------------

function arrived() {
  nameTheme();
  ownOrigin();
  tick();
  connect();
  drawCharts();
  askAgain();
}

function begin() {
  arrived();
  setInterval(tick, 1000);
  setInterval(() => { if (byId("rows") && !stream && !document.querySelector(".menu[open]")) refreshValues(); }, 30000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) byId("rows") ? refreshValues() : soon(0); });
  themes.addEventListener("change", () => { nameTheme(); drawCharts(true); });
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
else begin();
