// Sends chosen and dropped files to the page's own server, one by one, with their paths, and moves
// the line between before and after.
(() => {
  "use strict";
  const HEADERS = { "X-Udp-Page": "1" };
  const PARALLEL = 3;
  let busy = false;

  const remembered = () => sessionStorage.getItem("udp-draft") || "";
  window.udpDraft = remembered;
  window.udpForget = () => sessionStorage.removeItem("udp-draft");

  function say(text, bad) {
    const line = document.getElementById("upload-said");
    if (!line) return;
    line.textContent = text;
    line.className = bad ? "error" : "";
  }

  async function answer(response) {
    const text = await response.text();
    if (!response.ok) throw new Error(text || `error: the page answered ${response.status}`);
    return text;
  }

  async function draft() {
    if (!remembered()) {
      const made = await fetch("drafts", { method: "POST", headers: HEADERS });
      sessionStorage.setItem("udp-draft", await answer(made));
    }
    return remembered();
  }

  async function take(files) {
    if (busy || !files.length) return;
    busy = true;
    const problems = [];
    let done = 0;
    try {
      const id = await draft();
      const waiting = [...files];
      const work = async () => {
        for (let one = waiting.shift(); one; one = waiting.shift()) {
          say(`Taking in ${done + 1} of ${files.length}: ${one.path}`);
          try {
            await answer(await fetch(`drafts/${id}`, {
              method: "PUT",
              headers: { ...HEADERS, "X-Path": encodeURIComponent(one.path) },
              body: one.file,
            }));
          } catch (error) {
            problems.push(error.message);
          }
          done += 1;
        }
      };
      await Promise.all(Array.from({ length: PARALLEL }, work));
    } catch (error) {
      problems.push(error.message);
    }
    busy = false;
    say(problems.slice(0, 5).join("\n"), true);
    document.querySelector("#uploaded")?.click();
  }

  const pathOf = (file) => file.webkitRelativePath || file.name;

  async function inside(entry, found) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ file, path: entry.fullPath.replace(/^\/+/, "") });
      return;
    }
    const reader = entry.createReader();
    for (;;) { // A reader gives a hundred entries at a time.
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return;
      for (const one of part) await inside(one, found);
    }
  }

  document.addEventListener("change", (event) => {
    if (!event.target.matches?.("#pick-files, #pick-folder")) return;
    const files = [...event.target.files].map((file) => ({ file, path: pathOf(file) }));
    event.target.value = "";
    take(files);
  });

  document.addEventListener("input", (event) => {
    if (!event.target.matches?.(".line-at")) return;
    const pair = event.target.closest(".compared").querySelector(".pair");
    pair.style.setProperty("--at", `${event.target.value}%`);
  });

  const over = (event) => event.target.closest?.("#drop");
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      const place = over(event);
      if (!place) return;
      event.preventDefault();
      place.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => over(event)?.classList.remove("over"));
  document.addEventListener("drop", async (event) => {
    const place = over(event);
    if (!place) return;
    event.preventDefault();
    place.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    const found = [];
    try {
      for (const entry of entries) if (entry) await inside(entry, found);
    } catch (error) {
      say(`error: ${error.message}`, true);
    }
    take(found);
  });
})();
