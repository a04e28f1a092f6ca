// Pointers and arrays that watch: every access goes through `watch` of host_watch.h.
//
// The host rewrites `real*` to `ptr<real>`, `__shared__ real x[N];` to SHARED(real[N], x); and `real x[N];` to
// LOCAL(real[N], x); before it compiles. The line of an access is that where its index is converted to Index.

#include <type_traits>

namespace {
namespace host {

struct Index {
    long long i;
    Line line;
    Index(long long i, Line line = Line()) : i(i), line(line) {}
};

template <class T>
struct Ref {  // x[i], to be read or written; array is null where an outer index was already out of bounds
    Watched* array;
    long long i;
    Line line;
    operator T() const {
        if (array && watch(*array, i, false, line)) return ((T*)array->base)[i];
        return std::numeric_limits<T>::quiet_NaN();  // 0 for an integer
    }
    T operator=(T value) {
        if (array && watch(*array, i, true, line)) ((T*)array->base)[i] = value;
        return value;
    }
    T operator=(const Ref& other) { return *this = T(other); }
    T operator+=(T value) { return *this = T(*this) + value; }
    T operator-=(T value) { return *this = T(*this) - value; }
    T operator*=(T value) { return *this = T(*this) * value; }
    T operator/=(T value) { return *this = T(*this) / value; }
};

// T* or const T*.
template <class T>
struct ptr {
    using Value = std::remove_const_t<T>;
    Watched* array = nullptr;
    long long at = 0;
    using Element = std::conditional_t<std::is_const<T>::value, Value, Ref<Value>>;
    Element operator[](Index i) const {
        if (!array) finding(i.line, "null", "uses a null pointer, at [" + std::to_string(i.i) + "]");
        return Ref<Value>{array, at + i.i, i.line};
    }
    ptr operator+(long long n) const { return ptr{array, at + n}; }
    ptr operator-(long long n) const { return ptr{array, at - n}; }
    explicit operator bool() const { return array != nullptr; }
    operator ptr<const Value>() const { return ptr<const Value>{array, at}; }
};

template <class T>
struct View;  // an array of the kernel's own: View<real[16][17]> tile; tile[i][j] is a Ref<real>
template <class T>
Ref<T> element(Watched* array, long long at, const Line& line, T*) { return Ref<T>{array, at, line}; }
template <class T, size_t N>
View<T[N]> element(Watched* array, long long at, const Line&, T (*)[N]) { return View<T[N]>{array, at}; }

template <class T, size_t N>
struct View<T[N]> {
    using Value = std::remove_all_extents_t<T>;
    Watched* array;
    long long at;
    auto operator[](Index i) const {
        const long long stride = (long long)(sizeof(T) / sizeof(Value));
        const bool inside = array && i.i >= 0 && i.i < (long long)N;
        if (array && !inside) {
            finding(i.line, "bounds " + array->name, "takes [" + std::to_string(i.i) + "] of " + std::to_string(N) +
                                                         " in " + array->name + ": out of bounds");
        }
        return element(inside ? array : nullptr, at + i.i * stride, i.line, (T*)nullptr);
    }
    operator ptr<Value>() const { return ptr<Value>{array, at}; }
    operator ptr<const Value>() const { return ptr<const Value>{array, at}; }
};

// An array of one thread. Nobody else can touch it, but it has an end, and a beginning without values.
template <class T>
struct Local : View<T> {
    using Value = std::remove_all_extents_t<T>;
    static const size_t COUNT = sizeof(T) / sizeof(Value);
    Watched all;
    Cell cells[COUNT];
    Value values[COUNT];
    explicit Local(const char* name) : View<T>{&all, 0} {
        all.name = name, all.base = (char*)values, all.cells = cells;
        all.count = COUNT, all.item = sizeof(Value), all.on_chip = true;
    }
    Local(const Local&) = delete;
};

inline Watched& shared_array(const char* name, const Line& line, int item, long long count) {
    Watched& array = check->shared[place(line) + name];
    if (!array.cells) {
        array.name = name, array.item = item, array.count = count, array.on_chip = true;
        array.cells = new Cell[size_t(count)];
        array.base = new char[size_t(count * item)];  // both are given back by end_block
    }
    return array;
}

template <class T>
auto shared(const char* name, Line line = Line()) {
    using Value = std::remove_all_extents_t<T>;
    return element(&shared_array(name, line, sizeof(Value), sizeof(T) / sizeof(Value)), 0, line, (T*)nullptr);
}

template <class T>
ptr<T> shared_dynamic(const char* name, Line line = Line()) {
    return ptr<T>{&shared_array(name, line, sizeof(T), dynamic_bytes / (long long)sizeof(T)), 0};
}

template <class T>
struct Argument<ptr<T>> { static ptr<T> get(void* slot) { return ptr<T>{(Watched*)((Array*)slot)->watched, 0}; } };

}  // namespace host

using host::ptr;
}  // namespace
#define LOCAL(T, name) host::Local<T> name(#name)
#define SHARED(T, name) auto name = host::shared<T>(#name)
#define SHARED_DYNAMIC(T, name) auto name = host::shared_dynamic<T>(#name)
#undef __shared__
#define __restrict__
