module slipway.dev/examples/go-http-server

go 1.24
