// The board of orders. Texts enter the page as text only, and everything shown comes from one stream: see docs/board.md.
import { TEXTS } from "./texts.js";

const $ = id => document.getElementById(id), root = document.documentElement;
// Of each column this many cards are shown, and this many are drawn before the page may do something else.
const COLUMNS = ["pending", "paid", "ended"], SHOWN = 200, AT_ONCE = 50;
const STATES = ["awaiting_menu", "awaiting_menu_prepaid", "awaiting_payment", "paid", "failed", "cancelled"];
// The page has lost its connection after this silence, and its data is old after that one, in milliseconds.
const SILENT_MS = 10_000, OLD_MS = 25_000;
const cards = new Map(), columns = {}, names = new Map(), filters = $("filters").elements, auth = {};
let opened = Date.now(), language = stored() ?? root.lang, figures, heard = 0, updated = 0, connection, wake = () => {}, isLinked = false, ahead = 0;

function stored(value) {
  try {
    if (value) localStorage.setItem("board-language", value);
    return localStorage.getItem("board-language");
  } catch { return null; }
}
const index = () => Number(language === "en");
const t = (key, values = {}) => (TEXTS[key]?.[index()] ?? key).replace(/{(\w+)}/g, (_, name) => values[name]);
// Made once for each language: to make one takes longer than to draw a card.
const RUPIAH = new Intl.NumberFormat("id");
let formats;
const number = value => formats.number.format(value);
const rupiah = value => value === null ? "" : "Rp" + RUPIAH.format(value);
const clock = (at, seconds) => formats[seconds ? "medium" : "short"].format(new Date(at));
// With the day, unless that is today.
const moment = (at, seconds) => (Date.parse(at) < new Date().setHours(0, 0, 0, 0) ? `${formats.day.format(new Date(at))} ` : "") + clock(at, seconds);
const now = () => Date.now() + ahead;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} ${t("s")}`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} ${t("min")}` : `${Math.floor(seconds / 3600)} ${t("h")} ${Math.floor(seconds / 60) % 60} ${t("min")}`;
}
// Names come with the menu's answer; other orders may have them already. Marks in them must not turn around what follows.
const dish = (id, name) => (name ?? names.get(id))?.replace(/[\u202a-\u202e\u2066-\u2069]/g, "") ?? t("menu", {id});
const inMs = seconds => seconds === null ? "–" : seconds < 1 ? `${Math.round(seconds * 1000)} ms`
  : seconds < 100 ? `${number(Number(seconds.toPrecision(2)))} ${t("s")}` : duration(seconds * 1000);

// What a screen reader says: many changes at once as their number, and at most once in three seconds.
let news = [], speaking;
function say(text) {
  news.push(text);
  speaking ??= setTimeout(() => {
    $("said").textContent = news.length > 3 ? t("changes", {count: news.length}) : news.join(". ");
    news = [], speaking = undefined;
  }, $("said").textContent ? 3000 : 300);
}

// What an action of the person has failed with; it stays until the next one.
const complain = text => { $("problem").textContent = text; };

function makeColumns() {
  for (const name of COLUMNS) {
    const list = element("ol"), count = element("span"), late = element("span", {className: "late"}), title = element("b");
    const more = element("button", {type: "button", className: "plain", hidden: true, onclick: () => loadMore(name)});
    const made = element("section", {className: "column"}, element("h3", {id: `title-${name}`}, title, count, late), list, element("p", {className: "empty"}), more);
    made.dataset.column = name;
    made.setAttribute("aria-labelledby", `title-${name}`);
    columns[name] = {list, count, late, title, more, empty: made.querySelector(".empty"), most: SHOWN, cursor: undefined};
    $("columns").append(made);
  }
}

// As people type it: 12, or #12 as on a card.
const wantedNumber = () => filters.number.value.replace(/\D/g, "");
const rank = card => card.column === "pending" ? card.id : Date.parse(card.since);
function matches(card) {
  const dish = filters.dish.value.trim().toLowerCase();
  return String(card.id).startsWith(wantedNumber()) && (!filters.user.value || String(card.user) === filters.user.value)
    && (!filters.state.value || card.state === filters.state.value)
    && (!dish || card.items.some(([id, name]) => `${name ?? ""} ${id}`.toLowerCase().includes(dish)));
}

function age(node, card) {
  const isPending = card.column === "pending", begun = Date.parse(card.created_at);
  const share = isPending && (now() - begun) / (Date.parse(card.expires_at) - begun);
  node.dataset.age = !isPending ? (card.state === "failed" ? "failed" : card.state === "paid" ? "ok" : "off") : card.is_stuck || share > .8 ? "late" : share > .5 ? "soon" : "ok";
  write(node.parts.age, isPending ? duration(now() - begun) : moment(card.since));
}

function makeCard(id) {
  const parts = {order: element("span", {className: "quiet"})};
  for (const className of ["age", "items", "total", "note"]) parts[className] = element("span", {className});
  const {order, ...others} = parts, name = element("b", {}, order, `#${id}`);
  const button = element("button", {type: "button", onclick: () => openDrawer(id)}, name, ...Object.values(others));
  return Object.assign(element("li", {className: "card", id: `order-${id}`}, button), {parts});
}

function draw(node, card) {
  const dishes = card.items.map(([id, name, count]) => `${count > 1 ? `${count} × ` : ""}${dish(id, name)}`).join(", ");
  const note = card.message?.[index()] ?? (card.waits[index()] || (card.state === "paid" ? `${t("user")} ${card.user}` : t(card.state)));
  const texts = {order: `${t("order")} `, items: dishes, note, total: rupiah(card.total)};
  for (const [name, text] of Object.entries(texts)) write(node.parts[name], text);
  age(node, card);
}

function show(card, isNew) {
  const known = cards.get(card.id), node = known?.node ?? makeCard(card.id);
  const {list} = columns[card.column], hasFocus = document.activeElement === node.firstChild;
  cards.set(card.id, {card, node});
  node.rank = rank(card);
  draw(node, card);
  node.hidden = !matches(card);
  if (known?.card.column !== card.column || known.node.rank !== node.rank) {
    let next = list.lastChild?.rank > node.rank ? null : list.firstChild;
    while (next && (next === node || next.rank > node.rank)) next = next.nextSibling;
    list.insertBefore(node, next);
    if (hasFocus) node.firstChild.focus({preventScroll: true});
  }
  if (isNew && known?.card.state !== card.state) {
    node.classList.remove("changed");
    requestAnimationFrame(() => node.classList.add("changed"));
    say(`${t("order")} ${card.id}: ${t(card.state)}`);
  }
}

function tidy() {
  for (const [name, {list, most, more, cursor}] of Object.entries(columns)) {
    while (list.childElementCount > most) {
      cards.delete(Number(list.lastChild.id.slice(6)));
      list.lastChild.remove();
    }
    more.hidden = cursor === null || list.childElementCount < SHOWN;
  }
  showCounts();
}

function showCounts() {
  const midnight = new Date().setHours(0, 0, 0, 0), states = {paid: ["paid"], ended: ["failed", "cancelled"]};
  for (const name of COLUMNS) {
    const {list, count, late} = columns[name], nodes = [...list.children];
    if (name === "pending") {
      const lates = nodes.filter(node => node.dataset.age === "late").length;
      write(count, number(nodes.length < SHOWN ? nodes.length : figures?.pending ?? nodes.length));
      write(late, lates ? t("late", {count: number(lates)}) : "");
    } else {
      const counted = (figures?.ended ?? []).filter(([begin, state]) => begin * 1000 >= midnight && states[name].includes(state));
      write(count, number(Math.max(nodes.filter(node => node.rank >= midnight).length, counted.reduce((sum, each) => sum + each[2], 0))));
    }
  }
}

function showFigures() {
  const {hour, alerts} = figures, most = Math.max(1, ...hour.minutes.map(each => each.orders)), slowest = Math.max(.001, ...hour.minutes.map(each => each.p95 ?? 0));
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const stats = {per_minute: number(hour.minutes.slice(-5).reduce((sum, each) => sum + each.orders, 0) / 5), p50: inMs(hour.p50), p95: inMs(hour.p95)};
  const drawing = svg("svg", {viewBox: "0 0 60 20", preserveAspectRatio: "none", role: "img", "aria-label": Object.entries(stats).map(([name, value]) => `${t(name)} ${value}`).join(", ")});
  hour.minutes.forEach((each, x) => drawing.append(svg("rect", {x: x + .1, y: 20 - 20 * each.orders / most, width: .8, height: 20 * each.orders / most})));
  for (const name of ["p50", "p95"]) {
    const points = hour.minutes.flatMap((each, x) => each[name] === null ? [] : [`${x + .5},${19 - 18 * each[name] / slowest}`]);
    drawing.append(svg("polyline", {class: name, points: points.join(" ")}));
  }
  $("strip").replaceChildren(element("p", {className: "soft", textContent: t("hour")}), drawing, element("dl", {}, ...Object.entries(stats).map(([name, value]) => element("div", {}, element("dt", {textContent: t(name), className: name === "per_minute" ? "" : `key ${name}`}), element("dd", {textContent: value})))));
  const sibling = {menu: "Menu Service", payment: "Payment Service"};
  const wanted = new Map(alerts.map(each => [`${each.code} ${each.sibling ?? each.queue ?? ""}`, t(`alert_${each.code}`, {...each, age: duration(1000 * each.seconds), sibling: sibling[each.sibling]})]));
  for (const old of [...$("alerts").children]) if (!wanted.has(old.dataset.key)) old.remove();
  for (const [key, text] of wanted) {
    let shown = [...$("alerts").children].find(each => each.dataset.key === key);
    if (!shown) {
      const command = `python -m order_service ${TEXTS.commands[key.split(" ")[0]]}`;
      shown = element("details", {}, element("summary"), element("p", {}, element("span", {className: "type"}), " ", element("code", {textContent: command}), " ", copyButton(command)));
      shown.dataset.key = key;
      $("alerts").append(shown);
      say(text);
    }
    shown.querySelector("summary").textContent = text;
    shown.querySelector(".type").textContent = t("type");
  }
  showCounts();
}

function copyButton(text) {
  return element("button", {type: "button", className: "plain copy", textContent: t("copy"), ariaLabel: `${t("copy")} ${text}`, onclick: async event => {
    const isCopied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    event.target.textContent = t(isCopied ? "copied" : "copy_by_hand");
    event.target.ariaLabel = `${event.target.textContent} ${text}`;
  }});
}

async function request(path, options = {}) {
  const answer = await fetch(path, {...options, headers: {"Accept-Language": language, ...auth, ...options.headers}});
  if (answer.status === 401 || answer.status === 403) askToken((await answer.clone().json()).message);
  return answer;
}

async function loadMore(name) {
  const column = columns[name], before = column.list.childElementCount;
  column.more.disabled = true;
  try {
    do {
      const answer = await request(`board/orders?column=${name}&limit=100${column.cursor ? `&cursor=${encodeURIComponent(column.cursor)}` : ""}`);
      if (!answer.ok) break;
      const found = await answer.json();
      column.most += found.cards.filter(card => !cards.has(card.id)).length;
      for (const card of found.cards) if (!(cards.get(card.id)?.card.version > card.version)) show(card, false);
      column.cursor = found.next_cursor;
    } while (column.cursor && column.list.childElementCount === before);
  } catch { complain(t("lost")); }
  column.more.disabled = false;
  tidy();
}

const drawer = $("drawer"), placing = $("placing");
async function openDrawer(id, {problem = "", isRefresh = false} = {}) {
  const answer = await request(`board/orders/${id}`).catch(() => null);
  // A refresh neither opens it again, nor takes the place of a confirmation that is asked for.
  if (isRefresh && !(drawer.open && drawer.dataset.id === String(id) && !drawer.querySelector("footer span"))) return;
  complain(answer?.ok ? "" : t(answer?.status === 404 ? "unknown" : "lost"));
  if (!answer?.ok) return;
  const {card, explanation, timeline} = await answer.json(), close = element("button", {type: "button", className: "plain", textContent: t("close"), onclick: () => drawer.close()});
  const facts = {state: t(card.state), user: card.user, total: rupiah(card.total) || "–", dishes: card.items.map(([id, name, count]) => `${count} × ${dish(id, name)}`).join(", ")};
  // The confirm of an event follows the event, whose id it has.
  const isConfirm = each => ["confirmed", "waiting"].includes(each.kind);
  const detail = each => each.kind === "compensation" ? t(each.at ? "confirmed" : "unconfirmed")
    : each.kind === "outbox" || isConfirm(each) ? "" : each.text.split(" -> ").map(state => t(state)).join(" → ");
  const rows = timeline.map(each => element("tr", {}, element("td", {textContent: each.at ? moment(each.at, true) : ""}), element("td", {},
    element("b", {textContent: each.type}), ` ${t(`kind_${each.kind}`)} `, element("small", {textContent: detail(each)}),
    ...(each.id && !isConfirm(each) ? [element("br"), element("code", {textContent: each.id}), " ", copyButton(each.id)] : []))));
  const table = element("table", {}, element("thead", {}, element("tr", {}, element("th", {scope: "col", textContent: t("time")}), element("th", {scope: "col", textContent: t("event")}))), element("tbody", {}, ...rows));
  const footer = element("footer"), cancel = element("button", {type: "button", className: "danger", textContent: t("cancel"), onclick: () => {
    const keep = element("button", {type: "button", className: "plain", textContent: t("keep"), onclick: () => openDrawer(id)});
    footer.replaceChildren(element("span", {textContent: t("sure", {id})}), keep, element("button", {type: "button", className: "danger", textContent: t("really"), onclick: async event => {
      event.target.disabled = true;
      const done = await request(`orders/${id}`, {method: "DELETE"}).catch(() => null);
      openDrawer(id, {problem: done?.ok ? "" : done ? (await done.json()).message : t("lost")});
    }}));
    keep.focus();
  }});
  if (card.column === "pending") footer.append(cancel);
  drawer.dataset.id = id;
  const focused = isRefresh && document.activeElement.ariaLabel;
  drawer.replaceChildren(element("h2", {id: "drawer-title"}, `${t("order")} #${id}`, close), element("p", {className: "problem", role: "alert", textContent: problem}), element("p", {textContent: card.message?.[index()] ?? "", hidden: !card.message}), element("p", {className: "explanation", textContent: explanation[index()].replace(/\d{4}-[\d-]+T[\d:]+Z/g, at => moment(at, true))}),
    element("dl", {}, ...Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", {textContent: t(name)}), element("dd", {textContent: value})))), footer, element("h3", {textContent: t("timeline")}), table);
  if (!drawer.open) drawer.showModal();
  ([...drawer.querySelectorAll("button")].find(each => focused && each.ariaLabel === focused) ?? close).focus();
}

// The state of a page that has a connection.
const linked = () => Date.now() - (updated || opened) > OLD_MS ? "old" : updated ? "live" : "loading";
function link(state) {
  isLinked = state !== "lost";
  $("link").className = ["live", "loading"].includes(state) ? "" : "lost";
  write($("link"), t(state, {at: updated ? clock(updated, true) : "–"}));
}
function askToken(message) {
  $("login").hidden = false;
  $("board").hidden = true;
  for (const dialog of [drawer, placing]) dialog.close();
  isLinked = false;
  connection?.abort();
  $("link").className = message ? "lost" : "";
  $("link").textContent = message ?? "";
}

async function receive(name, data) {
  if (name === "figures") {
    figures = data, updated = Date.now(), ahead = Date.parse(data.now) - Date.now();
    if (isLinked) link(linked());
    return showFigures();
  }
  if (name === "snapshot") {
    $("board").dataset.loaded = "";
    const given = new Set(data.map(card => card.id));
    for (const [id, {node}] of cards) if (!given.has(id)) { node.remove(); cards.delete(id); }
    for (const column of Object.values(columns)) Object.assign(column, {most: SHOWN, cursor: undefined});
    data.sort((a, b) => rank(b) - rank(a));
  }
  for (const [id, dish] of data.flatMap(card => card.items)) if (dish) names.set(id, dish);
  for (let done = 0; done < data.length; done += AT_ONCE) {
    // A hidden page's timers may take a minute each.
    if (done && !document.hidden) await new Promise(resolve => setTimeout(resolve));
    for (const card of data.slice(done, done + AT_ONCE)) show(card, name === "cards");
  }
  tidy();
  if (drawer.open && name === "cards" && data.some(card => card.id === Number(drawer.dataset.id))) openDrawer(drawer.dataset.id, {isRefresh: true});
}

async function follow() {
  let last = "", pause = 500;
  while ($("login").hidden) {
    connection = new AbortController();
    heard = Date.now();
    try {
      const answer = await request("board/events", {headers: last ? {"Last-Event-ID": last} : {}, signal: connection.signal});
      if (!answer.ok) throw Object.assign(new Error(answer.status), await answer.json().catch(() => ({})));
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = "", piece; !(piece = await reader.read()).done;) {
        const events = (rest + piece.value).split("\n\n");
        rest = events.pop(), heard = Date.now(), pause = 500;
        if (!isLinked) link(linked());
        for (const event of events) {
          const fields = Object.fromEntries(event.split("\n").map(line => line.split(/: (.*)/s, 2)));
          if (!fields.data) continue;
          await receive(fields.event, JSON.parse(fields.data));
          last = fields.id, heard = Date.now();
        }
      }
    } catch (error) {
      if ($("login").hidden) link("lost");
      if ($("login").hidden && error.code === "too_many_streams") write($("link"), error.message);
    }
    await new Promise(resolve => { wake = resolve; setTimeout(resolve, pause); });
    pause = Math.min(5000, pause * 2);
  }
}

function describeEmpty() {
  const isFiltered = [...filters].some(each => each.value);
  for (const [name, {empty}] of Object.entries(columns)) empty.textContent = t(isFiltered ? "empty_filter" : `empty_${name}`);
}

function translate() {
  const locale = language === "en" ? "en-GB" : "id", time = timeStyle => new Intl.DateTimeFormat(locale, {timeStyle});
  formats = {number: new Intl.NumberFormat(locale), short: time("short"), medium: time("medium"), day: new Intl.DateTimeFormat(locale, {day: "numeric", month: "short"})};
  root.lang = language;
  document.title = t("title");
  for (const each of document.querySelectorAll("[data-text]")) each.textContent = t(each.dataset.text);
  for (const each of document.querySelectorAll("[data-label]")) each.ariaLabel = t(each.dataset.label);
  for (const each of document.querySelectorAll("[data-lang]")) each.ariaPressed = String(each.dataset.lang === language);
  const chosen = filters.state.value;
  filters.state.replaceChildren(new Option(t("all"), ""), ...STATES.map(state => new Option(t(state), state)));
  filters.state.value = chosen;
  for (const [name, column] of Object.entries(columns)) {
    column.title.textContent = t(`column_${name}`), column.more.textContent = t("more");
    column.more.ariaLabel = `${t("more")}: ${t(`column_${name}`)}`;
  }
  describeEmpty();
  for (const {card, node} of cards.values()) draw(node, card);
  $("alerts").replaceChildren();
  if (figures) showFigures();
  if (heard && $("login").hidden) link(isLinked ? linked() : "lost");
}

function move(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const here = document.activeElement?.closest("li.card"), step = {ArrowDown: 1, ArrowUp: -1}[event.key], side = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (event.key === "/" && !event.target.matches("input, select") && !document.querySelector("dialog[open]")) filters.number.focus();
  else if (!here || !(step || side)) return;
  else {
    const shown = list => [...list.children].filter(node => !node.hidden), list = here.parentNode, nodes = shown(list);
    const beside = columns[COLUMNS[COLUMNS.indexOf(list.parentNode.dataset.column) + side]];
    const next = step ? nodes[nodes.indexOf(here) + step] : beside && (shown(beside.list)[nodes.indexOf(here)] ?? shown(beside.list).at(-1));
    next?.firstChild.focus();
  }
  event.preventDefault();
}

function start() {
  $("board").hidden = false, $("login").hidden = true, opened = Date.now();
  follow();
}

makeColumns();
translate();
document.addEventListener("keydown", move);
for (const each of document.querySelectorAll("[data-lang]")) each.onclick = () => { language = stored(each.dataset.lang) ?? each.dataset.lang; translate(); };
$("filters").oninput = () => { complain(""); describeEmpty(); for (const {card, node} of cards.values()) node.hidden = !matches(card); };
$("filters").onreset = () => setTimeout($("filters").oninput);
filters.number.onkeydown = event => { if (event.key === "Enter" && wantedNumber()) openDrawer(wantedNumber()); };
$("login").onsubmit = event => {
  event.preventDefault();
  const token = event.target.token.value.trim();
  event.target.reset();
  // A header has no other characters.
  if (!/^[\x21-\x7e]+$/.test(token)) return askToken(t("bad_token"));
  auth.Authorization = `Bearer ${token}`;
  start();
};
const fields = placing.querySelector("form");
let isPlacing = false, attempt = {};
const add = id => { fields.dishes.value += `${fields.dishes.value && ", "}${id}`; };
const offer = dishes => $("known").replaceChildren(...dishes.map(([id, name, price]) => element("button", {type: "button", className: "plain", onclick: () => add(id)},
  element("span", {textContent: `${id} ${dish(id, name)}`}), " ", element("span", {textContent: rupiah(price)}))));
$("new").onclick = async () => {
  $("placed").textContent = "";
  placing.showModal();
  const answer = await request("board/dishes").catch(() => null), dishes = answer?.ok ? await answer.json() : [];
  offer(dishes.length ? dishes : [...names].map(([id, name]) => [id, name, null]));
};
placing.querySelector("[data-close]").onclick = () => placing.close();
fields.onsubmit = async event => {
  event.preventDefault();
  if (isPlacing) return;
  isPlacing = true;
  const body = JSON.stringify({user_id: Number(fields.user.value), menu_ids: (fields.dishes.value.match(/\d+/g) ?? []).map(Number)});
  // The same key until the outcome is known: a repeat after a lost answer places no second order.
  if (attempt.body !== body) attempt = {body, key: crypto.getRandomValues(new Uint32Array(4)).join("-")};
  const answer = await request("orders", {method: "POST", body, headers: {"Content-Type": "application/json", "Idempotency-Key": attempt.key, Prefer: "respond-async"}}).catch(() => null);
  const said = await answer?.json().catch(() => null);
  if (said && answer.status < 500) attempt = {};
  isPlacing = false;
  $("placed").textContent = said && answer.ok ? t("placed", {id: said.id}) : said?.message ?? t("lost");
};
addEventListener("offline", () => connection?.abort());
addEventListener("online", () => wake());
setInterval(() => {
  if (Date.now() - heard > SILENT_MS) connection?.abort();
  else if (isLinked) link(linked());
  for (const node of columns.pending.list.children) age(node, cards.get(Number(node.id.slice(6))).card);
  showCounts();
}, 1000);
if (root.dataset.auth === "jwt") askToken(); else start();
