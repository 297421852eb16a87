// SPDX-License-Identifier: Apache-2.0
// Watches whether the dashboard node still speaks. Dash reconnects by itself, but gives up after
// some minutes and then says nothing: a screen on a wall must never show an old state as new.
(function () {
  'use strict';
  const SILENT_MS = 3000;
  const RELOAD_MS = 20000;
  const TRY_MS = 5000;
  let beat = null;
  let heard = Date.now();
  let tried = 0;

  function note(text) {
    let line = document.getElementById('offline');
    document.body.classList.toggle('stale', Boolean(text));
    if (!text) {
      if (line) line.remove();
      return;
    }
    if (!line) {
      line = document.createElement('div');
      line.id = 'offline';
      line.setAttribute('role', 'alert');
      document.body.prepend(line);
    }
    line.textContent = text;
  }

  function look() {
    const now = Date.now();
    const found = document.getElementById('beat');
    const text = found ? found.textContent : null;
    if (text !== null && text !== beat) {
      beat = text;
      heard = now;
      note('');
      return;
    }
    const silent = now - heard;
    if (silent < SILENT_MS) return;
    note(typeof SharedWorker === 'undefined'
      ? 'this browser has no SharedWorker: the page cannot be kept up to date in it'
      : 'no word from the dashboard node for ' + Math.round(silent / 1000) +
        ' s: what is shown is old. This page comes back by itself when a node answers here again.');
    if (silent > RELOAD_MS && now - tried > TRY_MS) {
      tried = now;
      fetch(location.href, {cache: 'no-store'}).then(function (answer) {
        if (answer.ok) location.reload();
      }, function () { /* not there yet: the line above says so */ });
    }
  }

  setInterval(look, 500);
})();
