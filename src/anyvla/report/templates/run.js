// Start the two videos of a pair together, unless the user prefers reduced motion.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const group of document.querySelectorAll(".together")) {
  const videos = [...group.querySelectorAll("video")];
  const button = group.querySelector("button.both");
  const playing = () => videos.some((v) => !v.paused && !v.ended);
  const play = () => {
    if (videos.every((v) => v.ended || v.currentTime < 0.01)) videos.forEach((v) => { v.currentTime = 0; });
    videos.forEach((v) => { if (!v.ended) v.play().catch(() => {}); });
  };
  let wanted = !still && videos.some((v) => v.autoplay);
  const label = () => { button.textContent = wanted ? "Pause both" : "Play both"; };
  for (const v of videos) {
    v.loop = false;
    v.autoplay = false;
    if (still) v.pause();
    v.addEventListener("ended", () => {
      if (videos.every((other) => other.ended)) setTimeout(() => { if (wanted) play(); }, 900);
    });
  }
  button.addEventListener("click", () => {
    wanted = !playing();
    if (wanted) play(); else videos.forEach((v) => v.pause());
    label();
  });
  button.hidden = false;
  label();
  if (wanted) play();
}
