// The test service: lines in, lines out, see goservice/main.go.
"use strict";
const crypto = require("crypto");
const net = require("net");
const readline = require("readline");

const nonce = crypto.randomBytes(8).toString("hex");
const store = new Map();
let ticks = 0;
setInterval(() => { ticks++; }, 5);

function answer(line) {
  const [verb, key, ...value] = line.split(" ");
  switch (verb) {
    case "PUT":
      store.set(key, value.join(" "));
      return "OK";
    case "GET":
      return store.get(key) ?? "";
    case "STAT":
      return `${nonce} ${ticks}`;
  }
  return "ERR";
}

net.createServer((socket) => {
  socket.on("error", () => {});
  readline.createInterface({ input: socket }).on("line", (line) => socket.write(answer(line) + "\n"));
}).listen(7000, "0.0.0.0");
