// One page, one picture: sends it, shows what comes back. The newest request wins.
(() => {
  "use strict";
  const find = (selector) => document.querySelector(selector);
  const drop = find("#drop"), file = find("#file"), status = find("#status"), error = find("#error");
  const result = find("#result"), split = find("#split"), opacity = find("#opacity");
  const limit = Number(document.body.dataset.limit);
  let picture = null, running = null;

  const direction = () => find("input[name=direction]:checked").value;

  function say(text, busy = false) {
    status.textContent = text;
    status.classList.toggle("busy", busy);
  }

  function fail(sentence) {
    error.textContent = sentence.charAt(0).toUpperCase() + sentence.slice(1) + (/[.!?]$/.test(sentence) ? "" : ".");
    error.hidden = false;
    result.hidden = true;
    say("");
  }

  async function translate() {
    if (!picture) return;
    running?.abort();
    const mine = running = new AbortController();
    error.hidden = true;
    result.classList.add("stale");
    say("Translating …", true);
    try {
      if (picture.size > limit) throw new Error(`The image is larger than ${Math.floor(limit / 1048576)} MB`);
      const response = await fetch(`/translate?direction=${direction()}`, {
        method: "POST", body: picture, signal: mine.signal,
        headers: { "Content-Type": "application/octet-stream" },
      });
      const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
      if (!response.ok) throw new Error(answer.error || `the server answered ${response.status}`);
      await show(answer);
    } catch (problem) {
      if (problem.name === "AbortError" || mine !== running) return;
      fail(problem instanceof TypeError ? "The server does not answer; is agit demo-ui still running?" : problem.message);
    } finally {
      if (mine === running) result.classList.remove("stale");
    }
  }

  async function show(answer) {
    for (const image of result.querySelectorAll("[data-part]")) image.src = answer[image.dataset.part];
    result.style.setProperty("--aspect", `${answer.width} / ${answer.height}`);
    find("#download").href = answer.image;
    find("#coverage").textContent = `covers ${Math.round(answer.coverage * 100)} %`;
    result.hidden = false;
    await Promise.all([...result.querySelectorAll("img")].map((image) => image.decode()));
    const scaled = answer.scaled_from ? `, scaled down from ${answer.scaled_from.join(" x ")}` : "";
    say(`${answer.width} x ${answer.height} pixels${scaled}; ${answer.seconds.toFixed(1)} s.`);
  }

  function take(candidate) {
    if (!candidate) return;
    picture = candidate;
    for (const other of document.querySelectorAll("#examples button")) other.setAttribute("aria-pressed", "false");
    translate();
  }

  async function examples() {
    const box = find("#examples");
    const response = await fetch(`/examples/${direction()}`);
    const names = response.ok ? await response.json() : [];
    box.hidden = names.length === 0;
    box.querySelector(".thumbs").replaceChildren(...names.map((name, index) => {
      const button = document.createElement("button"), image = document.createElement("img");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      Object.assign(image, { src: name, alt: `Example ${index + 1}` });
      button.append(image);
      button.addEventListener("click", async () => {
        take(await (await fetch(name)).blob());
        button.setAttribute("aria-pressed", "true");
      });
      return button;
    }));
  }

  file.addEventListener("change", () => { take(file.files[0]); file.value = ""; });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
  for (const input of document.querySelectorAll("input[name=direction]")) {
    input.addEventListener("change", () => { examples(); translate(); });
  }
  split.addEventListener("input", () => result.style.setProperty("--split", `${split.value}%`));
  opacity.addEventListener("input", () => {
    find("#mask").style.opacity = opacity.value / 100;
    find("#opacity-value").textContent = `${opacity.value} %`;
  });
  opacity.dispatchEvent(new Event("input"));
  examples();
})();
