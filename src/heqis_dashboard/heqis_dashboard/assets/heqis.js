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

// The kill switch: asks for a reason, sends it, and says what came of it.
(function () {
  'use strict';
  const QUESTIONS = {
    'kill-on': ['Stop all signals?', 'Every signal is refused until somebody clears the switch.',
      'stop all signals'],
    'kill-off': ['Let signals out again?', 'What the kill file says is not lifted by this.',
      'let signals out'],
  };

  function add(parent, tag, text) {
    const made = document.createElement(tag);
    made.textContent = text || '';
    parent.append(made);
    return made;
  }

  async function send(engage, reason) {
    const answer = await fetch('/kill-switch', {
      method: 'POST',
      headers: {'Content-Type': 'application/json', 'X-HEQIS-Action': 'kill-switch'},
      body: JSON.stringify({engage: engage, reason: reason}),
    });
    return answer.json();
  }

  function ask(button) {
    if (document.getElementById('ask')) return;
    const [question, hint, yes] = QUESTIONS[button];
    const dialog = add(document.body, 'dialog');
    dialog.id = 'ask';
    const form = add(dialog, 'form');
    add(form, 'h2', question);
    add(form, 'p', hint);
    const reason = add(form, 'input');
    reason.placeholder = 'reason, kept in the journal';
    reason.maxLength = 100;
    const said = add(form, 'p');
    said.setAttribute('role', 'alert');
    const no = add(form, 'button', 'cancel');
    no.type = 'button';
    no.onclick = function () { dialog.remove(); };
    const confirm = add(form, 'button', yes);
    form.onsubmit = function (event) {
      event.preventDefault();
      confirm.disabled = true;
      send(button === 'kill-on', reason.value).then(function (answer) {
        if (answer.done) dialog.remove();
        said.textContent = 'not done: ' + answer.says;
      }, function (error) {
        said.textContent = 'not known whether it was done: ' + error.message;
      }).finally(function () { confirm.disabled = false; });
    };
    dialog.onclose = function () { dialog.remove(); };  // the Escape key
    dialog.showModal();
  }

  document.addEventListener('click', function (event) {
    const button = event.target.closest ? event.target.closest('#kill-on, #kill-off') : null;
    if (button) ask(button.id);
  });
})();
