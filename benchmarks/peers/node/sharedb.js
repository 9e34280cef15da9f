// ShareDB in memory: json0 documents {metadata, messages}, one per chat, with as many messages as asked for from the start.
// An ack means "applied in this process's memory". Usage: node sharedb.js FOLDER CHATS MESSAGES

'use strict';
const http = require('node:http');
const { Duplex } = require('node:stream');
const ShareDB = require('sharedb');
const { WebSocketServer } = require('ws');

const [, , , chats, messages] = process.argv;
const TEXT = 'She put the lantern down — slowly, as if the café were asleep — and asked what the letter had said. ';
const message = { name: 'User', is_user: true, send_date: '2025-01-01T00:00:00.000Z', mes: TEXT.repeat(3).slice(0, 215) };

// What a WebSocket looks like to ShareDB: an object stream of parsed messages.
function jsonStream(socket) {
  const stream = new Duplex({
    objectMode: true,
    read() {},
    write(data, _, next) {
      if (socket.readyState === socket.OPEN) socket.send(JSON.stringify(data));
      next();
    },
  });
  socket.on('message', (text) => stream.push(JSON.parse(text)));
  socket.on('close', () => {
    stream.push(null);
    stream.end();
  });
  stream.on('error', () => socket.close());
  return stream;
}

async function main() {
  const backend = new ShareDB();
  const connection = backend.connect();
  for (let k = 0; k < Number(chats); k++) {
    const data = { metadata: {}, messages: Array.from({ length: Number(messages) }, () => ({ ...message })) };
    await new Promise((resolve, reject) => {
      connection.get('chats', String(k)).create(data, (error) => (error ? reject(error) : resolve()));
    });
  }
  const server = http.createServer();
  new WebSocketServer({ server, perMessageDeflate: false }).on('connection', (socket) => backend.listen(jsonStream(socket)));
  server.listen(0, '127.0.0.1', () => console.log(`ws://127.0.0.1:${server.address().port}/`));
}

process.on('SIGTERM', () => process.exit(0));
main();
