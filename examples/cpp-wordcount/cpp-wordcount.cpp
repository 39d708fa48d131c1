// Counts lines, words and bytes of the files that it is given, or of standard input, and with --top N
// prints the N most frequent words of all of them. Ends with 1 when a file could not be read.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

struct Count {
	size_t lines = 0, words = 0, bytes = 0;
};

using Frequencies = std::unordered_map<std::string, size_t>;

Count count(std::istream &in, Frequencies &frequencies)
{
	Count count;
	for (std::string line; std::getline(in, line);) {
		// The last line may lack its end.
		count.lines += !in.eof();
		count.bytes += line.size() + !in.eof();
		std::istringstream words(line);
		for (std::string word; words >> word;) {
			count.words++;
			frequencies[word]++;
		}
	}
	return count;
}

void print(const Count &count, const std::string &name)
{
	std::printf("%8zu %8zu %8zu %s\n", count.lines, count.words, count.bytes, name.c_str());
}

void print_top(const Frequencies &frequencies, size_t top)
{
	std::vector<std::pair<std::string, size_t>> sorted(frequencies.begin(), frequencies.end());
	top = std::min(top, sorted.size());
	std::partial_sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(top), sorted.end(), [](const auto &a, const auto &b) {
		return a.second != b.second ? a.second > b.second : a.first < b.first;
	});
	for (size_t i = 0; i < top; i++)
		std::printf("%8zu %s\n", sorted[i].second, sorted[i].first.c_str());
}

} // namespace

int main(int argc, char **argv)
{
	std::vector<std::string> names(argv + 1, argv + argc);
	size_t top = 0;
	if (names.size() >= 2 && names[0] == "--top") {
		// Not std::stoul: it throws, and there are no exceptions here.
		top = std::strtoul(names[1].c_str(), nullptr, 10);
		names.erase(names.begin(), names.begin() + 2);
	}
	Frequencies frequencies;
	int status = EXIT_SUCCESS;
	if (names.empty())
		print(count(std::cin, frequencies), "-");
	for (const std::string &name : names) {
		std::ifstream file(name);
		if (!file) {
			std::perror(name.c_str());
			status = EXIT_FAILURE;
			continue;
		}
		print(count(file, frequencies), name);
	}
	print_top(frequencies, top);
	return status;
}
