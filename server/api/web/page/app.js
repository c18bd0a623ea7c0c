/** Where the page begins: it puts the parts together. */

import { hasKey, request, setKeyPrompt, storeKey } from "./api.js";
import { Conversation } from "./conversation.js";
import { announce, byId } from "./dom.js";
import { setUpExport } from "./export.js";
import { Inspector } from "./inspector.js";
import { Loop } from "./loop.js";
import { OptionsPanel } from "./options.js";
import { ServerView } from "./server_view.js";
import { Thread } from "./thread.js";
import { ToolsPanel } from "./tools.js";

const READY_INTERVAL_MS = 3000;
const STATES = { ready: "ready", loading: "the model is loading", down: "no answer" };

const conversation = Conversation.load();
const loop = new Loop(conversation);
const inspector = new Inspector();
const options = new OptionsPanel(conversation);
const tools = new ToolsPanel(conversation, useMessage);
const server = new ServerView(() => document.body.dataset.side === "server" && sideIsShown());
const thread = new Thread(conversation, {
  shown: () => keepFocus(),
  retry: (index) => run(restart(index, () => loop.go())),
  edit: (index, text) => run(restart(index, () => loop.say(text))),
  answer: (index, call, text) => {
    const isLast = index === conversation.turns.length - 1;
    run(isLast ? loop.answer(call, text) : restart(index + 1, () => loop.answer(call, text)));
  },
  inspect: (reply) => {
    inspector.show(reply);
    showView("inspect");
  },
});

const keepFocus = setUpFocus();
setUpKey();
setUpViews();
setUpComposer();
setUpExport(conversation, loop);
conversation.addEventListener("change", () => {
  thread.update();
  options.show();
});
conversation.addEventListener("restored", () => {
  tools.show();
  inspector.show(null);
});
conversation.onOtherTab((text) => {
  if (loop.busy) return showNotice("Another tab has changed this conversation. What is written here takes its place.");
  try {
    return conversation.follow(text);
  } catch (error) {
    return showNotice(`What another tab has kept cannot be read: ${error.message}`);
  }
});
addEventListener("pagehide", () => {
  if (loop.busy) conversation.keep(); // a reply that the page is left in, as far as it came
});
conversation.addEventListener("full", () => showNotice("This browser keeps no more: export the conversation, then begin a new one."));
loop.addEventListener("reply", ({ detail: reply }) => {
  thread.update();
  if (conversation.turns.includes(reply)) inspector.follow(reply);
});
loop.addEventListener("end", ({ detail: reply }) => {
  if (reply.error) server.addError(reply.error);
  if (conversation.turns.includes(reply)) inspector.end(reply);
  thread.update();
});
loop.addEventListener("busy", () => showBusy());
loop.addEventListener("limit", ({ detail }) => {
  showNotice(`${detail} replies called tools without a word of yours: write something to go on.`);
});
byId("new").addEventListener("click", () => {
  loop.stop();
  showNotice("");
  conversation.clear();
  inspector.show(null);
  byId("message").focus();
});
if (conversation.lost) showNotice(conversation.lost);
thread.toEnd();
watchReady();

/** Report what goes wrong: nothing fails in silence. */
function run(work) {
  work.catch((error) => showNotice(error.message));
}

/** Drop the turns from this one on, then go on; a reply that is being written ends first. */
async function restart(index, work) {
  await loop.halt();
  conversation.cutFrom(index);
  loop.rounds = 0;
  await work();
}

async function showModel() {
  byId("model").textContent = await loop.readModel();
  byId("forget-key").hidden = !hasKey();
}

/** Show whether the server answers, and which model it serves each time it is back. */
async function watchReady() {
  let state = "down";
  try {
    await request("/ready", { quiet: true });
    state = "ready";
  } catch (error) {
    if (error.status === 503) state = "loading";
  }
  const node = byId("state");
  if (node.dataset.state !== state) {
    node.dataset.state = state;
    node.textContent = STATES[state];
    if (state !== "down") run(showModel());
  }
  setTimeout(watchReady, READY_INTERVAL_MS);
}

function setUpKey() {
  const dialog = byId("key-dialog");
  const field = byId("key");
  setKeyPrompt((reason) => {
    byId("key-reason").textContent = reason;
    field.value = "";
    dialog.returnValue = "";
    if (!dialog.open) dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? field.value.trim() : null), { once: true });
    });
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("use");
  });
  byId("key-cancel").addEventListener("click", () => dialog.close(""));
  byId("forget-key").addEventListener("click", () => {
    storeKey(null);
    byId("forget-key").hidden = true;
    announce("The key is forgotten");
  });
}

function setUpViews() {
  for (const node of document.querySelectorAll("[data-show]")) {
    node.addEventListener("click", () => showView(node.dataset.show));
  }
  for (const node of document.querySelectorAll("dialog [data-close]")) {
    node.addEventListener("click", () => node.closest("dialog").close());
  }
  showView("chat");
}

/** Show a view; where there is room for several, the side beside the chat changes alone. */
function showView(name) {
  const { dataset } = document.body;
  dataset.view = name;
  if (name === "inspect" || name === "server") dataset.side = name;
  for (const node of document.querySelectorAll("[data-show]")) {
    const shown = node.dataset.show === name;
    node.setAttribute("aria-pressed", String(shown));
  }
  server.watch();
}

function sideIsShown() {
  return byId("view-server").checkVisibility();
}

/** Where what had the focus is gone, go on at the message; on a touch screen that would open its keyboard. */
function setUpFocus() {
  let focused = null;
  addEventListener("focusin", ({ target }) => (focused = target));
  return () => {
    const { activeElement } = document;
    if (!focused || focused.checkVisibility() || (activeElement !== document.body && activeElement !== focused)) return;
    const next = matchMedia("(pointer: coarse)").matches ? thread.node : byId("message");
    next.focus({ preventScroll: true });
  };
}

function setUpComposer() {
  const field = byId("message");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (!text || loop.busy) return;
    field.value = "";
    showNotice("");
    run(loop.say(text));
    thread.toEnd();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("composer").requestSubmit();
    }
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && loop.busy && !document.querySelector("dialog[open]")) loop.stop();
  });
  byId("stop").addEventListener("click", () => loop.stop());
  byId("welcome-weather").addEventListener("click", () => {
    useMessage("What is the weather in Paris?");
    byId("composer").requestSubmit();
  });
  showBusy();
}

function useMessage(text) {
  byId("message").value = text;
  byId("message").focus();
}

function showBusy() {
  byId("stop").hidden = !loop.busy;
  byId("send").hidden = loop.busy;
  thread.node.dataset.busy = String(loop.busy);
  thread.update();
  keepFocus();
}

function showNotice(text) {
  const notice = byId("notice");
  notice.textContent = text;
  notice.hidden = !text;
}
