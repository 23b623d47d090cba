// Who the VM is, a page that talks, and a WebSocket (RFC 6455) that writes every short text down and sends it back.
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

let connections = 0;

const server = http.createServer((request, response) => {
  const isPage = request.url.startsWith('/page');
  response.setHeader('Content-Type', isPage ? 'text/html' : 'text/plain');
  response.end(fs.readFileSync(isPage ? '/srv/page.html' : '/run/pando/name'));
});

server.on('upgrade', (request, socket) => {
  const accept = crypto.createHash('sha1').update(request.headers['sec-websocket-key'] + GUID).digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n');
  socket.write(`Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
  const connection = ++connections;
  let received = Buffer.alloc(0);
  socket.on('error', () => {}); // The client is gone: so is the socket.
  socket.on('data', (bytes) => {
    received = Buffer.concat([received, bytes]);
    // Two bytes of header, four of mask, and the text.
    while (received.length >= 6 && received.length >= 6 + (received[1] & 127)) {
      const end = 6 + (received[1] & 127);
      const mask = received.subarray(2, 6);
      const text = received.subarray(6, end).map((byte, index) => byte ^ mask[index % 4]);
      fs.appendFileSync('/srv/said', `${connection} ${text}\n`);
      socket.write(Buffer.concat([Buffer.from([0x81, text.length]), text]));
      received = received.subarray(end);
    }
  });
});

server.listen(8081, '127.0.0.1');
