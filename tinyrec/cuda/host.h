// The words of CUDA for an ordinary C++ compiler, so that the text of a kernel runs on a CPU as it stands.
//
// A launch is what it says: for every block of the grid, for every thread of the block, call the kernel. Here one after
// the other, with threadIdx and blockIdx as plain variables. That is enough for a kernel whose threads never wait for
// each other; host_fiber.h is for those that do, host_check.h has pointers that watch, host_launch.h runs the grid.

#include <math.h>  // also makes exp(float), fmax(float, float) ... known without std::, as CUDA has them

#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__ static
#define __host__
#define __forceinline__ inline
#define __constant__ static const
#define __launch_bounds__(...)
#define __shared__ static thread_local  // one block at a time runs on a processor of the host

struct dim3 { unsigned x = 1, y = 1, z = 1; };
static thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;  // in no namespace, where gdb would not find them

namespace {

const int warpSize = 32;

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }

namespace host {

struct Array { void* base; long long bytes; int item; const char* name; void* watched; };  // a pointer argument

struct Report {  // what a launch found; host.py has the same struct
    long long asked = 0, moved = 0, distinct = 0, findings = 0;
    char text[1 << 16] = "";
};

template <class T>
struct Argument { static T get(void* slot) { return *(T*)slot; } };  // a value, or an Array, whose first is the pointer

thread_local Report* report;
thread_local char* dynamic_shared;  // extern __shared__
thread_local long long dynamic_bytes;
thread_local std::string* said;  // ";scan.cu:12 kind;": one finding each, the first one

inline std::string place(dim3 i, dim3 n) {  // "5", or "(5, 1, 0)" where there is more than one axis
    if (n.y == 1 && n.z == 1) return std::to_string(i.x);
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

inline unsigned long long size(dim3 n) { return 1ull * n.x * n.y * n.z; }
inline int linear(dim3 i, dim3 n) { return int((1ull * i.z * n.y + i.y) * n.x + i.x); }

inline dim3 unlinear(long long i, dim3 n) {
    dim3 out;
    out.x = unsigned(i % n.x), out.y = unsigned(i / n.x % n.y), out.z = unsigned(i / n.x / n.y);
    return out;
}

// A line of a kernel. As the default value of a parameter, Line() is the line of whoever calls.
struct Line {
    const char* file;
    int number;
    Line(const char* file = __builtin_FILE(), int number = __builtin_LINE()) : file(file), number(number) {}
};

inline bool operator==(const Line& a, const Line& b) { return a.number == b.number && !strcmp(a.file, b.file); }

inline std::string place(const Line& line) {  // "scan.cu:12", without the folder
    const char* folder = strrchr(line.file, '/');
    return (folder ? folder + 1 : line.file) + (":" + std::to_string(line.number));
}

// "scan.cu:12: thread 1 of block 0 ..."; once for each line and kind, so that a loop does not flood it.
inline void finding(const Line& line, const std::string& kind, const std::string& what) {
    report->findings++;
    std::string key = ";" + place(line) + " " + kind + ";";
    if (said->find(key) != std::string::npos) return;
    *said += key;
    std::string all = place(line) + ": thread " + place(threadIdx, blockDim) + " of block " +
                      place(blockIdx, gridDim) + " " + what + "\n";
    if (strlen(report->text) + all.size() < sizeof report->text) strcat(report->text, all.c_str());
}

}  // namespace host
}  // namespace
