// A page that says who the VM is, and a WebSocket (RFC 6455) that sends every short text back.
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

const server = http.createServer((request, response) => response.end(fs.readFileSync('/run/pando/name')));

server.on('upgrade', (request, socket) => {
  const accept = crypto.createHash('sha1').update(request.headers['sec-websocket-key'] + GUID).digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n');
  socket.write(`Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
  let received = Buffer.alloc(0);
  socket.on('error', () => {}); // The client is gone: so is the socket.
  socket.on('data', (bytes) => {
    received = Buffer.concat([received, bytes]);
    // Two bytes of header, four of mask, and the text.
    while (received.length >= 6 && received.length >= 6 + (received[1] & 127)) {
      const end = 6 + (received[1] & 127);
      const mask = received.subarray(2, 6);
      const text = received.subarray(6, end).map((byte, index) => byte ^ mask[index % 4]);
      socket.write(Buffer.concat([Buffer.from([0x81, text.length]), text]));
      received = received.subarray(end);
    }
  });
});

server.listen(8081, '127.0.0.1');
