// search_rows: every admitted row, whatever its cluster. Memory: 256 MB of candidates at most, and a tile for each thread.
#include "scan.h"

extern "C" void stcli_search_rows(const stcli::SearchArguments* arguments) { stcli::scan_all_rows(*arguments); }
