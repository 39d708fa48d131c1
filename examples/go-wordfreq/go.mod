module slipway.dev/examples/go-wordfreq

go 1.24
