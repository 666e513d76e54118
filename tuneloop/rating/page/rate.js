"use strict";
const words = JSON.parse(document.getElementById("words").textContent);
const SCALES = ["relevance", "fluency", "informativeness"];
const CHOICES = ["A", "B", "tie", "both_bad"];
const $ = (id) => document.getElementById(id);
let language = words.chosen, rater = words.rater, total = 0, left = 0, place = 0, slot = null, shownAt = 0;
const waiting = new Map();  // place -> what is not on the server's disk yet, the newest of it
let sending = false, going = false, state = "";

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function word(key, facts = {}) {
  return words[language][key].replace(/\{(\w+)\}/g, (_, name) => facts[name]);
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function worded(tag, key, properties = {}) {
  const element = make(tag, { textContent: word(key), ...properties });
  element.dataset.word = key;
  return element;
}

async function call(path, options = {}) {
  const reply = await fetch(path, { cache: "no-store", redirect: "error", ...options });
  if (!reply.ok) throw Object.assign(new Error(reply.status), { status: reply.status });
  return reply.json();
}

function post(path, body) {
  const text = JSON.stringify(body);
  // A page that is being closed may send 64 kB yet.
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: text, keepalive: text.length < 60000 });
}

// What is shown

function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = word("title");
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", word(element.dataset.label));
  tell(state);
  count();
  if (slot) { text($("text_a"), slot.answer_a); text($("text_b"), slot.answer_b); }
  $("missing").textContent = "";
}

function failed(error) {  // a server in trouble is tried again; one that has no such address is another one
  tell(error.status && error.status < 500 ? "refused" : "unsaved");
}

function tell(now) {
  state = now;
  $("saved").textContent = now ? word(now) : "";
  $("saved").classList.toggle("warning", now === "unsaved" || now === "refused");
}

function count() {
  if (!total) return;
  $("place").textContent = `${word("place", { n: Math.min(place + 1, total), total })} · ${word("left", { n: left })}`;
  $("bar").style.width = `${100 * (total - left) / total}%`;
}

function show(name) {
  for (const one of ["start", "work", "done"]) $(one).hidden = one !== name;
}

function text(element, content) {
  const empty = !content.trim();
  element.textContent = empty ? word("empty") : content;
  element.classList.toggle("empty", empty);
  // What is longer than its box is reached by Tab, and scrolled by the arrows.
  requestAnimationFrame(() => { element.tabIndex = element.scrollHeight > element.clientHeight + 1 ? 0 : -1; });
}

function field(name, key, options) {
  const legend = make("span", { className: "name" }, worded("span", key));
  if (words[language][`${key}_help`]) legend.append(worded("span", `${key}_help`, { className: "help" }));
  const group = make("div", { className: "options" });
  for (const [option, label] of options) {
    const shown = label ? worded("span", label) : make("span", { textContent: option });
    group.append(make("label", {}, make("input", { type: "radio", name, value: option }), shown));
  }
  const set = make("fieldset", {}, make("div", { className: "row" }, legend, group));
  set.setAttribute("role", "radiogroup");
  set.dataset.label = key;
  set.dataset.field = name;
  return set;
}

function build() {
  for (const side of ["a", "b"]) {
    const section = $(`answer_${side}`);
    section.append(worded("h2", `answer_${side}`));
    section.append(make("div", { className: "text", id: `text_${side}`, dir: "auto" }));
    section.append(worded("p", "cut", { className: "quiet", id: `cut_${side}`, hidden: true }));
    const scores = [..."012345"].map((score) => [score, ""]);
    for (const scale of SCALES) section.append(field(`${scale}_${side}`, scale, scores));
    const safety = field(`safety_${side}`, "safety", [["pass", "pass"], ["fail", "fail"]]);
    const reason = make("input", { type: "text", maxLength: 2000, name: `safety_reason_${side}`, autocomplete: "off" });
    reason.dataset.label = "reason";
    const label = make("label", { className: "reason", hidden: true }, worded("span", "reason"), reason);
    safety.append(label);
    section.append(safety);
  }
  $("choice").append(field("choice", "choice", CHOICES.map((one) => [one, one])));
}

const fields = () => [...document.querySelectorAll("#work fieldset")];
const radios = (name) => [...document.querySelectorAll(`input[type=radio][name=${name}]`)];
const chosen = (name) => radios(name).find((radio) => radio.checked)?.value ?? null;
const reasonOf = (side) => document.querySelector(`input[name=safety_reason_${side}]`);

function open(name) {  // the fields that are still to be rated
  if (name.startsWith("safety_") && chosen(name) === "fail") return !reasonOf(name.at(-1)).value.trim();
  return chosen(name) === null;
}

function fill() {
  for (const radio of document.querySelectorAll("#work input[type=radio]")) radio.checked = false;
  for (const name of fields().map((set) => set.dataset.field)) {
    const rated = slot.rating[name];
    for (const radio of radios(name)) radio.checked = rated !== null && rated !== undefined && String(rated) === radio.value;
  }
  for (const side of ["a", "b"]) reasonOf(side).value = slot.rating[`safety_reason_${side}`] || "";
  reasons();
}

function reasons() {
  for (const side of ["a", "b"]) reasonOf(side).parentElement.hidden = chosen(`safety_${side}`) !== "fail";
}

async function go(to) {
  if (going) return;
  going = true;
  let fetched = null;
  while (!fetched) {  // not before the server has what was rated, nor while it is away
    try {
      while (waiting.size) await pause(50);
      fetched = to >= total ? {} : await call(`slot?${new URLSearchParams({ rater, n: to })}`);
    } catch (error) {
      failed(error);
      await pause(1000);
    }
  }
  going = false;
  if (to >= total) return finish();
  if (state === "unsaved" || state === "refused") tell("saved");
  slot = fetched;
  place = to;
  document.body.dataset.place = place;
  shownAt = performance.now();
  $("turns").replaceChildren(...slot.context.map((turn) => make("div", { className: "turn", dir: "auto" }, make("b", { textContent: `${turn.role} ` }), make("div", { className: "text", textContent: turn.content }))));
  $("context").hidden = !slot.context.length;
  text($("prompt"), slot.prompt);
  text($("text_a"), slot.answer_a);
  text($("text_b"), slot.answer_b);
  for (const side of ["a", "b"]) $(`cut_${side}`).hidden = !slot[`cut_${side}`];
  fill();
  $("missing").textContent = "";
  $("back").disabled = place === 0;
  show("work");
  count();
  window.scrollTo(0, 0);
  focus(fields().find((set) => open(set.dataset.field)) ?? fields().at(-1));
}

function finish() {
  [place, slot] = [total, null];
  document.body.dataset.place = place;
  show("done");
  count();
  $("again").focus();
}

// What is rated

function focus(set) {
  const own = radios(set.dataset.field);
  const side = set.dataset.field.at(-1);
  if (set.dataset.field.startsWith("safety_") && chosen(set.dataset.field) === "fail") reasonOf(side).focus();
  else (own.find((radio) => radio.checked) ?? own[0]).focus({ preventScroll: set === fields()[0] });
}

function collect() {
  const rating = { seconds: Math.round((slot.rating.seconds || 0) * 10 + (performance.now() - shownAt) / 100) / 10 };
  for (const name of fields().map((set) => set.dataset.field)) {
    const picked = chosen(name);
    rating[name] = picked !== null && /^\d$/.test(picked) ? Number(picked) : picked;
  }
  for (const side of ["a", "b"]) rating[`safety_reason_${side}`] = chosen(`safety_${side}`) === "fail" ? reasonOf(side).value : "";
  return rating;
}

function changed() {
  reasons();
  $("missing").textContent = "";
  waiting.set(place, collect());
  tell("saving");
  send();
}

async function send() {  // one change after the other; "saved" only when the server has all of them on its disk
  if (sending) return;
  sending = true;
  while (waiting.size) {
    const [n, rating] = waiting.entries().next().value;
    try {
      const reply = await post("slot", { rater, n, rating });
      if (waiting.get(n) === rating) waiting.delete(n);
      left = reply.left;
      count();
    } catch (error) {
      failed(error);
      await pause(1000);
    }
  }
  sending = false;
  tell("saved");
}

function pick(name, value) {
  const radio = radios(name).find((one) => one.value === value);
  radio.checked = true;
  changed();
  const all = fields(), at = all.findIndex((set) => set.dataset.field === name);
  if (name.startsWith("safety_") && value === "fail") reasonOf(name.at(-1)).focus();
  else if (at + 1 < all.length) focus(all[at + 1]);
  else radio.focus();
}

function next() {
  if (going) return;
  const lacking = fields().find((set) => open(set.dataset.field));
  if (!lacking) return go(place + 1);
  const letter = /_([ab])$/.exec(lacking.dataset.field)?.[1].toUpperCase(), label = word(lacking.dataset.label);
  $("missing").textContent = word("missing", { what: letter ? word("of_answer", { letter, what: label }) : label });
  focus(lacking);
}

function move(step) {
  const all = fields(), at = all.findIndex((set) => set.contains(document.activeElement));
  const to = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + step))];
  focus(to);
}

function key(event) {
  if ($("work").hidden || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (going) return event.preventDefault();  // the row that it is meant for is not here yet
  const inside = document.activeElement, writing = inside?.type === "text";
  const name = inside?.closest?.("fieldset")?.dataset.field ?? "";
  const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const choices = { a: "A", b: "B", t: "tie", x: "both_bad" };
  if (writing) {
    if (letter === "Enter") move(1);
    else if (letter === "Escape") radios(name)[1].focus();
    else return;
  } else if (letter === "Enter" && inside?.tagName !== "SUMMARY" && inside !== $("back") && inside !== $("language")) next();
  else if (letter === "Backspace") { if (place > 0) go(place - 1); }
  else if (/^[0-5]$/.test(letter) && SCALES.some((scale) => name.startsWith(scale))) pick(name, letter);
  else if ((letter === "p" || letter === "f") && name.startsWith("safety_")) pick(name, letter === "p" ? "pass" : "fail");
  else if (letter in choices) pick("choice", choices[letter]);
  else if (letter === "ArrowDown" && !inside?.classList.contains("text")) move(1);
  else if (letter === "ArrowUp" && !inside?.classList.contains("text")) move(-1);
  else return;
  event.preventDefault();
}

async function join(name) {
  try {
    const reply = await post("join", { rater: name });
    ({ rater, total, left } = reply);
    $("refusal").textContent = "";
    await go(reply.place);
  } catch (error) {
    show("start");
    if (error.status === 400) $("refusal").textContent = word("name_refused");
    else failed(error);
    $("rater").focus();
  }
}

build();
speak();
document.addEventListener("keydown", key);
$("work").addEventListener("change", changed);
for (const side of ["a", "b"]) reasonOf(side).addEventListener("input", changed);
$("next").addEventListener("click", next);
$("back").addEventListener("click", () => go(place - 1));
$("again").addEventListener("click", () => go(total - 1));
$("language").addEventListener("click", () => { language = language === "zh" ? "en" : "zh"; speak(); });
$("join").addEventListener("submit", (event) => { event.preventDefault(); join($("rater").value); });
addEventListener("beforeunload", (event) => { if (waiting.size) event.preventDefault(); });
if (rater) join(rater);
else { show("start"); $("rater").focus(); }
