// go-wordfreq counts the words of files and prints the most frequent ones as JSON.
//
//	go-wordfreq [-top N] [-out FILE] [-every DURATION] [PATH...]
//
// A directory stands for the files in it; without a path it reads standard input. With -every it
// counts again and again. The environment variable STOP_WORDS lists words to leave out.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type word struct {
	Word  string `json:"word"`
	Count int    `json:"count"`
}

type report struct {
	At    time.Time `json:"at"`
	Files int       `json:"files"`
	Words int       `json:"words"`
	Top   []word    `json:"top"`
}

func main() {
	top := flag.Int("top", 3, "how many words to print")
	out := flag.String("out", "", "file for the report, instead of standard output")
	every := flag.Duration("every", 0, "count again after this time")
	flag.Parse()
	for {
		if err := count(flag.Args(), *top, *out); err != nil {
			fmt.Fprintln(os.Stderr, "go-wordfreq:", err)
			os.Exit(1)
		}
		if *every == 0 {
			return
		}
		time.Sleep(*every)
	}
}

func count(paths []string, top int, out string) error {
	counts := map[string]int{}
	report := report{At: time.Now().UTC(), Top: []word{}}
	if len(paths) == 0 {
		if err := add(counts, os.Stdin); err != nil {
			return err
		}
		report.Files++
	}
	for _, path := range paths {
		err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			file, err := os.Open(name)
			if err != nil {
				return err
			}
			defer file.Close()
			report.Files++
			return add(counts, file)
		})
		if err != nil {
			return err
		}
	}
	for _, stop := range strings.Fields(os.Getenv("STOP_WORDS")) {
		delete(counts, stop)
	}
	for text, count := range counts {
		report.Words += count
		report.Top = append(report.Top, word{text, count})
	}
	slices.SortFunc(report.Top, func(a, b word) int {
		return cmp.Or(b.Count-a.Count, strings.Compare(a.Word, b.Word))
	})
	report.Top = report.Top[:min(max(top, 0), len(report.Top))]
	text, err := json.Marshal(report)
	if err != nil {
		return err
	}
	if out == "" {
		_, err = fmt.Println(string(text))
		return err
	}
	return replace(out, append(text, '\n'))
}

func add(counts map[string]int, in io.Reader) error {
	words := bufio.NewScanner(in)
	words.Split(bufio.ScanWords)
	for words.Scan() {
		counts[strings.ToLower(words.Text())]++
	}
	return words.Err()
}

// replace writes a file in one step: a reader sees the old text or the new one.
func replace(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
