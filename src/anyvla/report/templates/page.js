// The two videos of a pair start together, each time; someone who wants no motion starts them by hand.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const pair of document.querySelectorAll(".pair")) {
  const videos = [...pair.querySelectorAll("video")];
  const autoplay = videos.some((v) => v.autoplay) && !still;
  for (const v of videos) {
    v.loop = false;
    if (still) { v.autoplay = false; v.pause(); }
    v.addEventListener("ended", () => {
      if (!videos.every((other) => other.ended)) return;
      setTimeout(() => videos.forEach((other) => { other.currentTime = 0; other.play(); }), 900);
    });
  }
  const button = pair.querySelector("button");
  button.hidden = false;
  button.textContent = autoplay ? "Pause both" : "Play both";
  button.addEventListener("click", () => {
    const running = videos.some((v) => !v.paused);
    videos.forEach((v) => { if (running) { v.pause(); } else { if (videos.every((o) => o.ended || o.currentTime === 0)) v.currentTime = 0; v.play(); } });
    button.textContent = running ? "Play both" : "Pause both";
  });
}
