/* banditads: asks for ads and tells what visitors do with them. No dependency, no cookie. */
(() => {
  const me = document.currentScript, base = me.src.replace(/\/[^/]*$/, "")
  const q = encodeURIComponent, id = of => q(of.event_id || of)
  // No body and no type: no browser asks first, and none waits for the reply.
  const send = path => path && navigator.sendBeacon(base + path)
  const last = () => { try { return localStorage.banditads } catch { } }

  window.banditads = {
    // What POST /choose answers; null where nothing is eligible.
    async choose(ask = {}) {
      const headers = { "Content-Type": "application/json" }, key = me.dataset.key
      if (key) headers.Authorization = "Bearer " + key
      const reply = await fetch(base + "/choose", { method: "POST", headers, body: JSON.stringify(ask) })
      const said = reply.status == 204 ? null : await reply.json()
      if (!reply.ok) throw Object.assign(Error(said.error.message), said.error)
      return said
    },
    // The element shows the choice; half in view for a second is seen.
    watch(element, choice) {
      let timer
      const eye = new IntersectionObserver(seen => {
        clearTimeout(timer)
        if (seen.pop().isIntersecting)
          timer = setTimeout(() => { eye.disconnect(); send(choice.impression_url) }, 1000)
      }, { threshold: .5 })
      eye.observe(element)
      element.addEventListener("click", () => {
        send(choice.click_url)
        try { localStorage.banditads = choice.event_id } catch { }
      })
    },
    // A purchase, say; after the ad clicked last, or `of`.
    convert(value = 1, order = "", of = last()) {
      if (of) send(`/conversion/${id(of)}?value=${value}&order_id=${q(order)}`)
    },
    // Seconds from now until the page is left.
    dwell(of = last()) {
      const since = Date.now()
      if (of) addEventListener("pagehide", () =>
        send(`/dwell/${id(of)}?seconds=${(Date.now() - since) / 1e3}`), { once: true })
    }
  }
})()
