// go-http-server is net/http under WasmEdge: routes, JSON, deadlines, one goroutine for each connection.
// PORT names its port, default 8080.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

func main() {
	port, err := port()
	if err != nil {
		log.Fatal(err)
	}
	listener, err := listen(port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on port %d\n", port)
	server := &http.Server{Handler: routes(), ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}

func port() (uint16, error) {
	text, set := os.LookupEnv("PORT")
	if !set {
		return 8080, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("PORT is %q, not a port number", text)
	}
	return uint16(port), nil
}

func routes() http.Handler {
	var served atomic.Int64
	started := time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		fmt.Fprintln(w, "Hello from Go")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"served": served.Load(), "up": time.Since(started).Round(time.Millisecond).String()})
	})
	return mux
}
