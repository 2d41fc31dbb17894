"""An OTLP/HTTP receiver: decodes with opentelemetry-proto, prints one JSON line a message.

python otlp_receiver.py STATUS    prints its port first, answers with STATUS

The official collector is a Go program that no package index has.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MESSAGES = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        message = MESSAGES[self.path].FromString(body)
        line = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "message": MessageToDict(message),
        }
        print(json.dumps(line), flush=True)
        self.send_response(int(sys.argv[1]))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args):
        pass


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
