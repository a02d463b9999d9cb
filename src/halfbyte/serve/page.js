
"use strict";
const at = (id) => document.getElementById(id);
const [drop, file, preview] = [at("drop"), at("file"), at("preview")];
// Of several images sent one after the other, the last one's answer is shown, whichever comes first.
let turn = 0;

function show(image) {
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.onload = () => preview.classList.toggle("small", preview.naturalWidth < 140);
  preview.onerror = () => { preview.hidden = true; at("invitation").hidden = false; };
  preview.src = URL.createObjectURL(image);
  preview.alt = "The image that was sent: " + (image.name || "pasted");
  preview.hidden = false;
  at("invitation").hidden = true;
}

function tell(status, error = "") {
  at("status").textContent = status;
  at("error").textContent = error;
}

function cell(tag, text, number) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (number) made.className = "number";
  return made;
}

function row(entry) {
  const made = document.createElement("tr");
  const name = cell("th", entry.label);
  name.scope = "row";
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.append(document.createElement("div"));
  bar.firstChild.style.width = `${100 * entry.probability}%`;
  name.append(bar);
  made.append(name, cell("td", (100 * entry.probability).toFixed(1) + "\u00a0%", true), cell("td", entry.index, true));
  return made;
}

function answer(found, trip) {
  at("rows").replaceChildren(...found.top.map(row));
  const times = { ...found.milliseconds, trip };
  for (const id of ["engine", "prepare", "wait", "trip"]) at(id).textContent = times[id].toFixed(1) + "\u00a0ms";
  at("result").hidden = at("times").hidden = false;
  const [best] = found.top;
  tell(`${best.label}, ${(100 * best.probability).toFixed(1)} percent, in ${times.total.toFixed(1)} milliseconds.`);
}

async function send(image) {
  const own = ++turn;
  at("result").hidden = at("times").hidden = true;
  show(image);
  if (image.size > Number(file.dataset.limit)) return tell("", `The image is larger than ${file.dataset.most}.`);
  tell("Sending …");
  const form = new FormData();
  form.append("image", image, image.name || "pasted");
  const start = performance.now();
  try {
    const response = await fetch("predict", { method: "POST", body: form });
    const found = await response.json();
    if (own !== turn) return;
    if (response.ok) answer(found, performance.now() - start);
    else tell("", found.error);
  } catch {
    if (own === turn) tell("", "The server did not answer.");
  }
}

file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); });
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  // Anywhere else on the page a browser would open what is dropped.
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
  });
}
document.addEventListener("drop", (event) => {
  const [image] = event.dataTransfer.files;
  if (image) send(image);
  else tell("", "That was no file; save the image first, then drop it here.");
});
document.addEventListener("paste", (event) => {
  const [image] = event.clipboardData.files;
  if (image) send(image);
});
