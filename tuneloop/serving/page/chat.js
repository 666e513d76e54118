// A chat with two models side by side. Whatever comes from a model or a server is text to it, never markup.
"use strict"

const words = JSON.parse(document.getElementById("words").textContent)
const $ = id => document.getElementById(id)
const stored = (box, key, text) => {
  try {
    if (text !== undefined) box.setItem(key, text)
    return box.getItem(key)
  } catch { return null }
}
const spoken = (navigator.language || "").toLowerCase().startsWith("zh") ? "zh" : "en"
let language = stored(localStorage, "tuneloop-language") || spoken
if (!(language in words)) language = "en"
let key = stored(sessionStorage, "tuneloop-key") || ""
let under_way = null
const chats = { a: [], b: [] }
// Drawn, for not every machine has a font with the sign.
const THUMB = "M2 9h3.5v8H2zM7 9l3-7c1.6 0 2.3 1 2.3 2.4V7H16c1.1 0 1.9 1 1.7 2l-1.2 6.4c-.2 1-.9 1.6-1.9 1.6H7z"

const say = name => words[language][name] || name

function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en"
  document.title = say("title")
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word)
  for (const element of document.querySelectorAll("[data-hint]")) {
    element.placeholder = say(element.dataset.hint)
    element.setAttribute("aria-label", say(element.dataset.hint))
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.title = say(element.dataset.label)
    element.setAttribute("aria-label", say(element.dataset.label))
  }
}

function made(tag, kind, parent, word) {
  const element = document.createElement(tag)
  if (kind) element.className = kind
  if (word) element.dataset.word = word
  if (word) element.textContent = say(word)
  parent.append(element)
  return element
}

function headers(json) {
  return { ...(json ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) }
}

async function refusal(reply) {
  try { return (await reply.json()).error.message } catch { return `${reply.status}` }
}

async function open() {
  $("trouble").textContent = ""
  let reply
  try { reply = await fetch("v1/models", { headers: headers(false) }) } catch {
    $("trouble").textContent = say("down")
    return
  }
  $("key_form").hidden = reply.status !== 401
  if (reply.status === 401) {
    if (key) $("trouble").textContent = say("wrong_key")
    stored(sessionStorage, "tuneloop-key", key = "")
    $("key").focus()
    return
  }
  if (!reply.ok) {
    $("trouble").textContent = await refusal(reply)
    return
  }
  offer((await reply.json()).data)
}

function offer(models) {
  const tuned = models.find(one => one.parent && models.some(other => other.id === one.parent))
  const first = tuned ? tuned.parent : models.length ? models[0].id : ""
  const second = tuned ? tuned.id : ""
  for (const [id, chosen] of [["model_a", first], ["model_b", second]]) {
    $(id).replaceChildren()
    if (id === "model_b") {
      const none = made("option", "", $(id), "nobody")
      none.value = ""
    }
    for (const one of models) {
      const option = made("option", "", $(id))
      option.value = one.id
      option.textContent = one.id
    }
    $(id).value = chosen
  }
  for (const id of ["models", "intro", "ask", "again"]) $(id).hidden = false
  $("question").focus()
}

function restart() {
  if (under_way) under_way.abort()
  chats.a = []
  chats.b = []
  $("turns").replaceChildren()
  $("intro").hidden = false
  $("question").focus()
}

function card(parent, model) {
  const box = made("section", "answer writing", parent)
  made("h2", "", box).textContent = model
  const thought = made("details", "", box)
  made("summary", "", thought, "thought")
  const thought_text = thought.appendChild(document.createTextNode(""))
  thought.hidden = true
  const text = made("div", "text", box)
  text.dir = "auto"
  const written = text.appendChild(document.createTextNode(""))
  const warning = made("p", "warning", box)
  warning.setAttribute("role", "alert")
  return { box, thought, thought_text, written, warning, id: "", text: "" }
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader()
  let left = ""
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    left += value
    const parts = left.split("\n\n")
    left = parts.pop()
    for (const part of parts) {
      const data = part.replace(/^data: /, "")
      if (data === "[DONE]") return
      yield JSON.parse(data)
    }
  }
}

function take(answer, event) {
  if (event.error) {
    answer.warning.textContent = event.error.message
    return
  }
  answer.id = event.id || answer.id
  const choice = (event.choices || [])[0]
  if (!choice) return
  const { content, reasoning_content: thought, tool_calls: calls } = choice.delta || {}
  if (thought) {
    answer.thought.hidden = false
    answer.thought_text.appendData(thought)
  }
  if (content) {
    answer.text += content
    answer.written.appendData(content)
  }
  for (const call of calls || []) answer.written.appendData((call.function.name || "") + (call.function.arguments || ""))
  const finish = { length: "cut", content_filter: "filtered" }[choice.finish_reason]
  if (finish) {
    answer.warning.dataset.word = finish
    answer.warning.textContent = say(finish)
  }
}

async function answered(side, model, question, parent, signal) {
  const answer = card(parent, model)
  const messages = [...chats[side], { role: "user", content: question }]
  const near_end = () => innerHeight + scrollY > document.body.scrollHeight - 160
  try {
    const body = JSON.stringify({ model, messages, stream: true })
    const reply = await fetch("v1/chat/completions", { method: "POST", headers: headers(true), body, signal })
    if (!reply.ok) answer.warning.textContent = await refusal(reply)
    else {
      for await (const event of events(reply)) {
        const follow = near_end()
        take(answer, event)
        if (follow) scrollTo(0, document.body.scrollHeight)
      }
    }
  } catch (error) {
    const word = error.name === "AbortError" ? "stopped" : "down"
    answer.warning.dataset.word = word
    answer.warning.textContent = say(word)
  }
  answer.box.classList.remove("writing")
  if (answer.text) chats[side] = [...messages, { role: "assistant", content: answer.text }]
  if (answer.id) votes(answer)
}

function drawn() {
  const namespace = "http://www.w3.org/2000/svg"
  const image = document.createElementNS(namespace, "svg")
  const path = document.createElementNS(namespace, "path")
  image.setAttribute("viewBox", "0 0 20 20")
  image.setAttribute("aria-hidden", "true")
  path.setAttribute("d", THUMB)
  image.append(path)
  return image
}

function votes(answer) {
  const line = made("div", "votes", answer.box)
  const note = document.createElement("span")
  note.className = "note"
  note.setAttribute("role", "status")
  for (const [thumb, label] of [["up", "up"], ["down", "down_thumb"]]) {
    const button = made("button", "", line)
    button.type = "button"
    button.append(drawn())
    button.dataset.label = label
    button.dataset.thumb = thumb
    button.title = say(label)
    button.setAttribute("aria-label", say(label))
    button.setAttribute("aria-pressed", "false")
    button.onclick = () => vote(answer.id, thumb, line, note)
  }
  line.append(note)
}

async function vote(id, thumb, line, note) {
  delete note.dataset.word
  try {
    const body = JSON.stringify({ id, thumb })
    const reply = await fetch("v1/feedback", { method: "POST", headers: headers(true), body })
    if (!reply.ok) {
      note.textContent = await refusal(reply)
      return
    }
    for (const button of line.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", `${button.dataset.thumb === thumb}`)
    }
    note.dataset.word = "noted"
    note.textContent = say("noted")
  } catch {
    note.dataset.word = "down"
    note.textContent = say("down")
  }
}

async function ask() {
  const question = $("question").value.trim()
  if (!question || under_way) return
  const asked = [["a", $("model_a").value], ["b", $("model_b").value]].filter(([, model]) => model)
  under_way = new AbortController()
  $("question").value = ""
  $("intro").hidden = $("send").hidden = true
  $("stop").hidden = false
  const turn = made("div", "turn", $("turns"))
  const text = made("div", "asked", turn)
  text.dir = "auto"
  text.textContent = question
  const answers = made("div", asked.length > 1 ? "answers" : "answers single", turn)
  scrollTo(0, document.body.scrollHeight)
  const mine = under_way
  await Promise.all(asked.map(([side, model]) => answered(side, model, question, answers, mine.signal)))
  under_way = null
  $("send").hidden = false
  $("stop").hidden = true
  $("question").focus()
}

$("language").onclick = () => {
  stored(localStorage, "tuneloop-language", language = language === "zh" ? "en" : "zh")
  speak()
}
$("again").onclick = restart
$("model_a").onchange = $("model_b").onchange = restart
$("stop").onclick = () => under_way && under_way.abort()
$("ask").onsubmit = event => {
  event.preventDefault()
  ask()
}
$("question").onkeydown = event => {
  // While an input method composes, Enter chooses a word and sends nothing.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault()
    ask()
  }
}
$("key_form").onsubmit = event => {
  event.preventDefault()
  stored(sessionStorage, "tuneloop-key", key = $("key").value.trim())
  $("key").value = ""
  open()
}
speak()
open()
